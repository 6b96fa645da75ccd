"""Names, labels and amounts as Kubernetes writes them (kubernetes.io, "Object Names and IDs", "Labels and Selectors",
"Quantity")."""

import difflib
import re
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
DNS1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
QUANTITY = re.compile(r"([+-]?(?:\d+(?:\.\d*)?|\.\d+))(?:([KMGTPE]i|[numkMGTPE])|[eE]([+-]?\d+))?")
POWERS = {"n": -3, "u": -2, "m": -1, "k": 1, "M": 2, "G": 3, "T": 4, "P": 5, "E": 6}


def nearest(word: str, known: Iterable[str]) -> str:
    """`, did you mean …?` with the closest of `known`, or nothing."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f", did you mean {found[0]!r}?" if found else ""


def is_label(text: str) -> bool:
    """A DNS-1123 label: at most 63 lower-case letters, digits and `-`."""
    return len(text) <= 63 and bool(LABEL.fullmatch(text))


def is_dns1035(text: str) -> bool:
    """A DNS-1035 label: as a DNS-1123 label, and a letter first."""
    return len(text) <= 63 and bool(DNS1035.fullmatch(text))


def is_subdomain(text: str) -> bool:
    """A DNS-1123 subdomain: labels with dots between them, at most 253 characters."""
    return len(text) <= 253 and bool(SUBDOMAIN.fullmatch(text))


def is_label_value(text: str) -> bool:
    return len(text) <= 63 and bool(VALUE.fullmatch(text))


def is_qualified(text: str) -> bool:
    """A label's key: an optional subdomain and `/`, then at most 63 characters as in a label's value."""
    prefix, slash, name = text.rpartition("/")
    return (not slash or is_subdomain(prefix)) and bool(name) and is_label_value(name)


def amount(quantity: Any) -> Fraction | None:
    """The number that a quantity (`500m`, `2Gi`, 1) stands for; None where it is none."""
    found = QUANTITY.fullmatch(str(quantity))
    if not found or isinstance(quantity, bool):
        return None
    number, suffix, exponent = found.groups()
    if suffix and suffix.endswith("i"):
        return Fraction(number) * 1024 ** POWERS["k" if suffix[0] == "K" else suffix[0]]
    return Fraction(number) * Fraction(10) ** (3 * POWERS[suffix] if suffix else int(exponent or 0))


def version(text: str) -> tuple[int, ...] | None:
    """The numbers of a version, as KubeRay parses them: two or more, `v` allowed, what follows them left out."""
    found = re.match(r"\s*v?(\d+(?:\.\d+)+)", text)
    return tuple(map(int, found[1].split("."))) if found else None


def tag(image: str) -> tuple[str, str, str]:
    """(repository, tag, digest) of an image's name."""
    name, _, digest = image.partition("@")
    repository, colon, found = name.rpartition(":")
    return (repository, found, digest) if colon and "/" not in found else (name, "", digest)
