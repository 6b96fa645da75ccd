"""How often a key may ask: token buckets, one for requests and one for tokens."""

from dataclasses import dataclass

from serving.keys import Key
from serving.refusals import Refused


@dataclass
class Bucket:
    """Fills at `rate` a minute up to a minute's worth, and is full at first. `at` is in seconds of any clock."""

    rate: float
    at: float
    level: float

    def lacks(self, amount: float, now: float) -> float:
        """Seconds until `amount` can be taken; 0 where it can be now."""
        self.level = min(self.rate, self.level + max(0.0, now - self.at) * self.rate / 60)
        self.at = max(now, self.at)
        return max(0.0, (amount - self.level) * 60 / self.rate)


class Rates:
    """The buckets of all keys that have a rate."""

    def __init__(self) -> None:
        self.buckets: dict[tuple[bytes, str, float], Bucket] = {}

    def take(self, key: Key, tokens: int, now: float) -> None:
        """Count a request of `key` that may make so many output tokens. Raises Refused (429) with the seconds to wait,
        and then counts nothing."""
        wanted = []
        for what, rate, amount in (
            ("requests", key.requests_per_minute, 1),
            ("tokens", key.tokens_per_minute, tokens),
        ):
            if rate is None:
                continue
            bucket = self.buckets.setdefault((key.digest, what, rate), Bucket(rate, now, rate))
            taken = min(amount, rate)  # more than a minute's worth waits for a full bucket
            if wait := bucket.lacks(taken, now):
                message = f"this key may make {rate:g} {what} a minute; try again in {wait:.0f} s"
                raise Refused(429, message, "rate_limit_exceeded", retry_after=wait)
            wanted.append((bucket, taken))
        for bucket, taken in wanted:
            bucket.level -= taken
