"""Exact numbers and small arithmetic expressions in text: found, valued, written canonically.

Pure, standard library only, and safe on hostile text: no eval, no float, bounded digits, tokens and
depth, patterns that cannot backtrack far. A value is a `Fraction`, or None where there is none.
The text is expected as `answers` cleans it: ASCII digits and minus, `$` for any currency.
"""

import re
from fractions import Fraction

MAX_DIGITS = 60  # longer is no answer to a word problem, and exact arithmetic on it costs time
MAX_EXPONENT = 40
MAX_TOKENS = 300
MAX_DEPTH = 40
MAX_PLACES = 12  # decimals written out; beyond, a value is written p/q
MAX_BITS = 600
SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}

_INTEGER = r"(?:\d{1,3}(?:,\d{3}){1,8}(?![\d,]*\d)|\d{1,2}(?:,\d{2}){1,6},\d{3}(?!\d)|\d++)"
# A minus is a sign only where nothing before it can be subtracted from: "5 -3" and "10-3" hold none.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w).%\]-])(?<![\d)%]\ )-(?=\$?\ ?[\d.]))?(?:\$\ ?(?P<inner>-?))?(?<!\w)(?<!\d\.)(?<!\d:)"
    r"(?:(?P<whole>\d{1,9})(?:\ and\ |\ )(?P<top>\d{1,9})/(?P<low>\d{1,9})(?![\d/]|\.\d)"
    r"|(?<!\d/)(?P<over>\d{1,9})\ ?/\ ?(?P<under>\d{1,9})(?![\d/]|[.,]\d)"
    rf"|(?P<digits>{_INTEGER}(?:\.\d++)?|\.\d++)"
    r"(?:[eE](?P<exp>[+-]?\d{1,9})(?!\w)|\ ?[*x]\ ?10\ ?\^\ ?[{(]?(?P<ten>-?\d{1,9})[)}]?)?)"
    r"(?:\ (?P<scale>hundred|thousand|million|billion|trillion)\b)?"
    r"(?!:\d)(?![xyznXYZ]\b)"
)  # fmt: skip
_TOKEN = re.compile(rf"\s*+(?:({_INTEGER}(?:\.\d*+)?|\.\d++)|([-+*/()]))")


def _decimal(digits: str, exponent: int = 0) -> Fraction | None:
    digits = digits.replace(",", "")
    if len(digits) > MAX_DIGITS or abs(exponent) > MAX_EXPONENT:
        return None
    return Fraction(digits.rstrip(".")) * Fraction(10) ** exponent


def _valued(match: re.Match[str]) -> Fraction | None:
    part = match.groupdict()
    if part["digits"]:
        value = _decimal(part["digits"], int(part["exp"] or part["ten"] or 0))
    else:
        below = int(part["low"] or part["under"])
        value = int(part["whole"] or 0) + Fraction(int(part["top"] or part["over"]), below) if below else None
    if value is None:
        return None
    return value * SCALES.get(part["scale"] or "", 1) * (-1 if part["sign"] or part["inner"] else 1)


def numbers(text: str) -> list[tuple[int, int, Fraction | None]]:
    """Every number in `text` as (start, end, value); the value is None for one too long or over zero."""
    return [(match.start(), match.end(), _valued(match)) for match in _NUMBER.finditer(text)]


def leading(text: str) -> tuple[int, Fraction | None] | None:
    """The end and value of the number that `text` begins with, or None."""
    match = _NUMBER.match(text)
    return (match.end(), _valued(match)) if match else None


def written(value: Fraction) -> str | None:
    """`value` as a short decimal without trailing zeros, else as p/q in lowest terms; None where it is huge."""
    if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
        return None
    scaled = value * 10**MAX_PLACES
    if scaled.denominator != 1:
        return f"{value.numerator}/{value.denominator}"
    digits = str(abs(scaled.numerator)).rjust(MAX_PLACES + 1, "0")
    text = f"{digits[:-MAX_PLACES]}.{digits[-MAX_PLACES:]}".rstrip("0").rstrip(".")
    return f"-{text}" if value < 0 else text


def tokens(text: str) -> list[str] | None:
    """The tokens of an expression with numbers in canonical form; None where anything else is in it."""
    found: list[str] = []
    at, text = 0, text.strip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if not match or len(found) == MAX_TOKENS:
            return None
        token = match[2]
        if not token:
            value = _decimal(match[1])
            token = written(value) if value is not None else None
            if token is None or "/" in token:  # more decimals than are written out
                return None
        found.append(token)
        at = match.end()
    return found or None


class _Parser:
    """Recursive descent over tokens; raises ValueError or ZeroDivisionError, both caught in `evaluate`."""

    def __init__(self, found: list[str]) -> None:
        self.left = found[::-1]

    def take(self, wanted: str) -> str:
        """The next token if it is one of `wanted`, else the empty string."""
        return self.left.pop() if self.left and self.left[-1] in wanted else ""

    def sum(self, depth: int) -> Fraction:
        """Terms joined by + and -."""
        if depth > MAX_DEPTH:
            raise ValueError("too deep")
        value = self.product(depth)
        while sign := self.take("+-"):
            term = self.product(depth)
            value = value + term if sign == "+" else value - term
        return value

    def product(self, depth: int) -> Fraction:
        """Factors joined by * and /."""
        value = self.factor(depth)
        while sign := self.take("*/"):
            factor = self.factor(depth)
            value = value * factor if sign == "*" else value / factor
        return value

    def factor(self, depth: int) -> Fraction:
        """A number or a bracket, with any signs before it."""
        negative = False
        while sign := self.take("+-"):
            negative ^= sign == "-"
        if self.take("("):
            value = self.sum(depth + 1)
            if not self.take(")"):
                raise ValueError("unclosed bracket")
        elif self.left and self.left[-1][0].isdigit():
            value = Fraction(self.left.pop())
        else:
            raise ValueError("no number")
        return -value if negative else value


def well_formed(text: str) -> str | None:
    """The canonical form of an expression (tokens without spaces), or None where it is none.

    A division by zero is well formed; it only has no value."""
    found = tokens(text)
    if found is None:
        return None
    try:
        parser = _Parser(found)
        parser.sum(0)
        return None if parser.left else "".join(found)
    except ValueError:
        return None
    except ZeroDivisionError:
        return "".join(found)


def evaluate(text: str) -> Fraction | None:
    """The exact value of an expression, or None where it is none, too large, or divides by zero."""
    found = tokens(text)
    if found is None:
        return None
    try:
        parser = _Parser(found)
        value = parser.sum(0)
    except (ValueError, ZeroDivisionError):
        return None
    return None if parser.left else value
