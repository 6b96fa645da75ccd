"""The address of an OpenAI-compatible endpoint: whether it is one, and one that anybody may read."""

import re
from urllib.parse import SplitResult, urlsplit


def parsed(url: str) -> SplitResult:
    """The parts of `url`. Raises ValueError where it is no http(s) address with a host."""
    try:
        found = urlsplit(url)
        well = found.scheme in ("http", "https") and found.hostname and found.port != 0 and not re.search(r"\s", url)
    except ValueError:  # half an IPv6 address, a port that is no number
        well = False
    if not well:
        raise ValueError("the endpoint's address is not one: write it as http://host:8000/v1")
    return found


def public(url: str) -> str:
    """`url` as it is. Raises ValueError where it is no address, and where it holds what may be a secret; the message
    does not show it."""
    if "@" in parsed(url).netloc or "?" in url or "#" in url:
        raise ValueError(
            "the address holds a user or password (before @), a query (behind ?) or a fragment (behind #), and it is "
            "written into the output's files: leave that out and give the key as OPENAI_API_KEY"
        )
    return url
