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

    def take(self, key: Key, what: str, amount: int, now: float) -> None:
        """Count so many `requests` or `tokens` of `key`. Raises Refused (429) with the seconds to wait, and then counts
        nothing. More than a minute's worth waits for a full bucket, and is paid off before the next comes in."""
        rate = key.requests_per_minute if what == "requests" else key.tokens_per_minute
        if rate is None:
            return
        bucket = self.buckets.setdefault((key.digest, what, rate), Bucket(rate, now, rate))
        if wait := bucket.lacks(min(amount, rate), now):
            message = f"this key may make {rate:g} {what} a minute; try again in {wait:.0f} s"
            raise Refused(429, message, "rate_limit_exceeded", retry_after=wait)
        bucket.level -= amount
