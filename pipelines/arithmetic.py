"""Exact numbers in text: found, valued, written canonically; small expressions; what prose comes to.

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
MAX_BITS = 150  # of numerator and denominator: what is written can be read again
MAX_CONTENT = 2000  # characters behind a cue that are looked at
SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}

_INTEGER = (
    r"(?:(?<=\$)\d{1,3}(?:\ \d{3}){1,4}(?![\d,])|\d{1,3}(?:,\d{3}){1,8}(?!\d|,\d)"
    r"|\d{1,2}(?:,\d{2}){1,6},\d{3}(?!\d)|\d++)"
)
# A minus is a sign only where nothing before it can be subtracted from: "5 -3" and "10-3" hold none.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w).%\]-])(?<![\d)%]\ )-(?=\$?\ ?[\d.]))?(?:\$\ ?(?P<inner>-?))?(?<!\w)(?<!\d\.)(?<!\d:)"
    r"(?:(?P<whole>\d{1,9})(?:\ and\ |\ )(?P<top>\d{1,9})/(?P<low>\d{1,9})(?![\d/]|\.\d)"
    r"|(?<!\d/)(?P<over>\d{1,50})\ ?/\ ?(?P<under>\d{1,50})(?![\d/]|[.,]\d)"
    rf"|(?P<digits>{_INTEGER}(?:\.\d++)?|\.\d++)"
    r"(?:[eE](?P<exp>[+-]?\d{1,9})(?!\w)|\ ?[*x]\ ?10\ ?\^\ ?[{(]?(?P<ten>-?\d{1,9})[)}]?)?)"
    r"(?:\ (?P<scale>hundred|thousand|million|billion|trillion)\b)?"
    r"(?::00(?!\d))?(?!:\d)(?![xyznXYZ]\b)"  # on the hour, a time is its hour
)  # fmt: skip
_TOKEN = re.compile(rf"\s*+(?:({_INTEGER}(?:\.\d*+)?|\.\d++)|([-+*/()]))")


def _decimal(digits: str, exponent: int = 0) -> Fraction | None:
    digits = re.sub("[, ]", "", digits)
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


def _tokens(text: str) -> list[str] | None:
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
    """Recursive descent over tokens; raises ValueError on what is no expression. `defined` turns False
    on a division by zero, so that the rest is still checked for its form."""

    def __init__(self, found: list[str]) -> None:
        self.left = found[::-1]
        self.defined = True

    def whole(self) -> Fraction:
        """All tokens as one sum."""
        value = self.sum(0)
        if self.left:
            raise ValueError("something follows the expression")
        return value

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
            if sign == "/":
                self.defined &= factor != 0
                factor = 1 / (factor or Fraction(1))
            value *= factor
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


def _parsed(text: str) -> tuple[str, Fraction | None] | None:
    found = _tokens(text)
    if found is None:
        return None
    parser = _Parser(found)
    try:
        value = parser.whole()
    except ValueError:
        return None
    return "".join(found), value if parser.defined else None


def well_formed(text: str) -> str | None:
    """The canonical form of an expression (tokens without spaces), or None where it is none.

    A division by zero is well formed; it only has no value."""
    parsed = _parsed(text)
    return parsed[0] if parsed else None


def evaluate(text: str) -> Fraction | None:
    """The exact value of an expression, or None where it is none or divides by zero."""
    parsed = _parsed(text)
    return parsed[1] if parsed else None


_LEAD = re.compile(
    r"[\s*_$(\"'\[:=>~]*+(?:(?:approximately|about|around|exactly|only|just|roughly|simply|equal to|a total of"
    r"|therefore|thus|so|Rs\.?|INR|USD|US(?=\$)|EUR|GBP|[a-zA-Z]\ ?=(?!=))[\s*_$(:]*+){0,3}",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<![.\s]\w)(?<!\bRs)(?<!\bMr)(?<!\bMs)(?<!\bMrs)(?<!\bDr)[.!?][*_\"')\]]*+(?=\s|$)|\n")
_REASON = re.compile(r"\b(?:because|since|as|so|which|where|if|when|after)\b|;|,(?!\d)", re.IGNORECASE)
_OPERATED = re.compile(r"[%$)\s]*+(?:(?:[-+/^]|\*(?!\*)|x\b)[\s$(]*[\d.]|\*(?!\*)\s*[\d$(])")
_SEVERAL = re.compile(  # read past the clause; numbers behind a reason word are no part of the answer
    r"(?:\s*(?:%|[a-z]+)?\ (?:and|or|to)\ \$?\d|\s*-\ ?\$?\d|,\ ?\d|(?:[./:]|\ ++)\d|\s?(?:or|to)\b\ ?\$?\d"
    r"|(?:(?!\ (?:because|since)\b)[a-z ])*\ and\ \$?\d|\ (?!(?:because|since|as|so|where|if|when|after)\b)[a-z]+\ \d"
    r"|\W*(?:(?!because\b)\w+\ )?(?:(?:more|less|fewer|greater)\ than|times\ (?:as|more|the)"
    r"|(?:percent\ )?of\ (?:the\ )?\$?\d))",
    re.IGNORECASE,
)
_ASIDE = re.compile(r"\bbecause\b|(?:\bthan\b|>)(?=[^=,;]*$)", re.IGNORECASE)
_RANGED = re.compile(r"\d%?\ ?(?:\bor\b|\bto\b|-|,)\ ?\$?$|:$|\bbetween\ \$?\d+\ and\ \$?$")
_VERB = re.compile(
    r"\b(?:is|are|was|were|be|ha[sd]|have|equals|ma[kd]es?|spen[dt]s?|costs?|needs?|pays?|paid|earns?|takes?|gets?"
    r"|will|would|can|must)\b",
    re.IGNORECASE,
)
_ORDINAL = re.compile(r"(?:st|nd|rd|th)\b")
_WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()
_WORDED = re.compile(
    r"\b(?:is|are|was|were|has|have|had|gets?|needs?|makes?|leaves|equals)\ (?:only\ |exactly\ |about\ )?"
    rf"(?:{'|'.join(_WORDS[2:])}|twenty|thirty|forty|fifty)\b",
    re.IGNORECASE,
)
_BOLD = re.compile(r"\*\*(?!\s*(?:step|part|case|\d+[.)]\s))([^*\n]{1,80})(?<!:)\*\*(?!:)", re.IGNORECASE)


def _plain(text: str) -> str:
    return text.replace("**", " ").replace("__", " ")


def _after_equals(clause: str) -> Fraction | None:
    """The number after the last "=" of a clause."""
    rest = clause.rpartition("=")[2]
    found = numbers(rest)
    if not found and re.fullmatch(r"\W*[A-Za-z]\W*", rest):  # "10 = b"
        side = clause.rpartition("=")[0].rstrip()
        before = numbers(side)
        alone = before and before[-1][1] == len(side) and not re.search(r"[-+*/^]\ ?$", side[: before[-1][0]])
        return before[-1][2] if alone else None
    if not found or len(rest[: found[0][0]].split()) > 4:
        return None
    if _OPERATED.match(rest, found[0][1]) or rest[: found[0][0]].strip().startswith("("):
        return evaluate(rest.strip(" .*$")[:200].replace("$", ""))
    return found[0][2]


def _concluded(sentence: str) -> Fraction | None:
    """The number a sentence of prose comes to."""
    bold = [found for part in _BOLD.findall(sentence) if len(found := numbers(part)) == 1]
    if len(bold) == 1:
        return bold[0][0][2]
    clause = _plain(sentence)
    found = numbers(clause)
    if found and (aside := _ASIDE.search(clause, found[0][1])):  # what follows only supports or compares
        clause = clause[: aside.start()]
    if "=" in clause:
        rest = clause.rpartition("=")[2]
        later = re.split(r",(?!\d)|;|\b(?:so|therefore|thus|which means)\b", rest)
        if not any(numbers(part) for part in later[1:]):
            return _after_equals(clause)
        clause = rest
    found = numbers(clause)
    counted = [number for number in found if not _ORDINAL.match(clause, number[1])] or found
    if not counted or (len(counted) > 1 and _RANGED.search(clause, max(counted[-1][0] - 30, 0), counted[-1][0])):
        return None
    verbs = [verb.end() for verb in _VERB.finditer(clause)]
    after = [number for number in counted if verbs and number[0] >= verbs[-1]]
    if len(after) > 1:  # "has 18 eggs after 3 days" says 18, "has 5 eggs and 3 pans" no one number
        return None if _OPERATED.match(clause, after[0][1]) or _SEVERAL.match(clause, after[0][1]) else after[0][2]
    if len(counted) > 1 and re.search(r"[-+*/^x]\ ?\$?\(*$", clause[: counted[-1][0]]):
        return None  # an operation without its result
    return counted[-1][2]


def sentences(text: str) -> list[str]:
    """The sentences and lines of a text that are not blank; a decimal point ends none."""
    return [part for part in _SENTENCE_END.split(text) if part.strip()]


def concluded(text: str) -> Fraction | None:
    """The number that prose without a cue ends on: rule 4 of `answers`."""
    for sentence in reversed(sentences(text[-20 * MAX_CONTENT :])):
        if re.search(r"\d", sentence):
            return _concluded(sentence)
        if _WORDED.search(sentence):
            return None
    return None


def stated(content: str) -> Fraction | None:
    """The number that `content`, the text behind a cue, begins with or comes to: rule 3 of `answers`."""
    plain = _plain(content[:MAX_CONTENT]).strip()
    start = lead.end() if (lead := _LEAD.match(plain)) else 0
    if start and plain[start - 1] == "$":
        start -= 1
    if plain[:start].rstrip(" $").endswith("("):  # an expression may begin with its bracket
        whole = evaluate(plain.partition("=")[0].rstrip(" .*$").replace("$", ""))
        if whole is not None:
            return whole
    sentence = _SENTENCE_END.split(plain[start:])[0]
    clause = _REASON.split(sentence)[0]
    if re.match(r"\d++[/-]\d++[/-]\d", clause):
        return None
    found = leading(clause)
    if found is None:
        word = re.match(r"[A-Za-z]+", clause)
        if word and word[0].lower() in _WORDS:
            return Fraction(_WORDS.index(word[0].lower())) if len(clause.split()) < 4 else None
        return _after_equals(clause) if "=" in clause else _concluded(_SENTENCE_END.split(content.strip())[0])
    if "=" in clause:
        return _after_equals(clause)
    end, value = found
    if _OPERATED.match(clause, end):
        return evaluate(clause.rstrip(" .*$").replace("$", "").replace("x", "*"))
    return None if _SEVERAL.match(sentence, end) else value
