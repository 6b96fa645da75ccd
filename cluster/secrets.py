"""What looks like a secret: so that none gets into a recipe, a manifest, a job's environment or a log.

Names follow what cloud SDKs and OpenAI-style APIs call their keys; values, the forms that their makers publish so that
scanners find them (GitHub's "Supported secret scanning patterns", AWS's unique identifiers of IAM). Plain words that
happen to be passwords cannot be told from others: for those only the name speaks."""

import re
from collections.abc import Iterator
from typing import Any

KINDS = {
    "an AWS access key id": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{20,}",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{40,})",
    "a GitLab token": r"\bglpat-[A-Za-z0-9_-]{16,}",
    "an API key": r"(?<![\w/-])sk-[A-Za-z0-9_-]*[A-Za-z0-9_]{16,}",
    "a Google API key": r"\bAIza[A-Za-z0-9_-]{35}",
    "a Slack token": r"\bxox[abprs]-[A-Za-z0-9-]{10,}",
    "a JSON web token": r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a signed URL": r"[?&](?:X-Amz-Signature|X-Goog-Signature|Signature|sig)=[^&\s]{16,}",
    "a bearer token": r"(?i)\b(?:bearer|basic)\s+[A-Za-z0-9._~+/-]{20,}",
    "an account's key": r"\bAccountKey=[A-Za-z0-9+/=]{16,}",
    "a password in a URL": r"[A-Za-z][A-Za-z0-9+.-]*://[^/\s:@]*:(?!\d+/)[^\s@?#,]+@",
}
_VALUES = {kind: re.compile(form) for kind, form in KINDS.items()}
_NAME = re.compile(
    r"(?:^|[_.-])(?:key|token|secret|passw(?:or)?d|pass|pat|passphrase|credentials?|access[_-]?key(?:[_-]id)?"
    r"|connection[_-]string)$|(?:passw(?:or)?d|apikey|secretkey)$|secret[_-]?key",
    re.I,
)
_HUMPS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
WAY = (
    "keys come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, HF_TOKEN): set it before Ray starts; "
    "on Kubernetes put them in the Secrets regrow-s3 and regrow-hub, or give the pods a workload identity"
)


def kind(text: str) -> str | None:
    """Which kind of secret `text` holds, as a phrase; None where none is seen."""
    return next((kind for kind, form in _VALUES.items() if form.search(text)), None)


def named(name: str) -> bool:
    """Whether a variable's or field's name says that its value is a secret: AWS_SECRET_ACCESS_KEY, hfToken."""
    return bool(_NAME.search(_HUMPS.sub("_", name.strip())))


def found(content: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, what it is) of everything in `content` (mappings, lists, strings) that looks like a secret, by its name or
    its value."""
    if isinstance(content, dict):
        for name, value in content.items():
            below = f"{path}.{name}" if path else str(name)
            if isinstance(value, str) and value and named(str(name)):
                yield below, "a secret by its name"
            else:
                yield from found(value, below)
    elif isinstance(content, list | tuple):
        for number, value in enumerate(content):
            yield from found(value, f"{path}.{number}" if path else str(number))
    elif isinstance(content, str) and (what := kind(content)):
        yield path, what
