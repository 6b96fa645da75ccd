"""The final answer said in a text, and whether two answers are the same. Pure and strict.

Models: GSM8K's grader takes the first `#### (-?[0-9.,]+)`; lm-eval's gsm8k `strict-match` does the same, its
`flexible-extract` the last number of the text, its CoT variant "The answer is N.". Rules here, in this order:

1. Text after a stop token or from the next "Question:" / "Q:" on belongs to another turn and is
   ignored; so is what follows a first `####` number when a second comes without a correction
   ("wait", "mistake") between. `<<48/2=24>>` annotations go; LaTeX, Markdown, currencies and
   Unicode digits, minus signs and spaces become plain ASCII.
2. The last cue decides: `####`, `\\boxed{}`, "answer is", "answer:", "A:" (for choices also "option B", "B is the
   correct choice"). A cue with nothing behind it passes to the one before; one with something unreadable behind it
   ("the answer is unknown", "3 or 4") gives None. A heading ("#### Step 1", "Answer: Let's think ...", "the answer is
   as follows:") only moves the start.
3. Behind a cue a number is read where it stands first ("18 dollars in 3 days"), else after the last "=", else as
   in 4. A pure expression is worth its value; a date, time, range, list or quantity of several units is None.
   `30%` is 30, `1 3/4` is 1.75, "3 million" 3000000.
4. Without a cue: in the last sentence that holds a number, the only bold one, else the one after the last "=", else
   the first one behind the last verb ("has 18 eggs after 3 days"), else the last one; what follows "because" or
   "than" does not count. None for alternatives, ranges, lists, operations without a result, and where a later
   sentence counts in words ("eight are left"). Other kinds take the last line if it is nothing but an answer.

All patterns run in linear time; numbers of more than 60 digits are no answers.
"""

import re
import unicodedata
from collections.abc import Callable
from itertools import pairwise

from pipelines import arithmetic
from pipelines.arithmetic import MAX_CONTENT

KINDS = ("number", "choice", "label", "text", "list", "expression", "none")

_STOP = re.compile(r"</s>|<\|(?:im_end|im_start|eot_id|endoftext|end|eom_id)\|>|<end_of_turn>|<eos>|\[/?INST\]")
_NEXT_TURN = re.compile(
    r"(?:^|(?<=\s))[#*]{0,6}\ ?(?:(?:Question|QUESTION|Q)(?:\ ?\d{1,4})?|Human|User"
    r"|(?<=\#\ )Instruction|(?<=\n\n)Problem)(?:\*\*)?:",
    re.MULTILINE,
)
_HASHES = re.compile(r"(?<!#)#{4,}+[ *$]*+-?[$]?\.?\d(?!\d{0,3}[.):]\s+[A-Za-z])")
_CORRECTION = re.compile(r"\b(?:wait|actually|mistake|sorry|correct(?:ed|ion)|instead|re-?check|however|wrong)\b", re.I)
_ANNOTATION = re.compile(r"<<([^<>\n]*+)>>(?=(\ ?[-$]?\.?\d)?)")

_CUE = re.compile(
    r"(?P<hash>\#{4,})"
    r"|\\f?box(?:ed)?\ ?\{(?P<box>(?:[^{}]++|\{[^{}]*+\})*+)\}"
    r"|(?<![/\w])(?:answers?|ans)\b(?!['’])[*_]{0,3}(?:\ (?:to|for)\ [^.:=\n]{1,80}?)??\ ?"
    r"(?:(?::|=|\b(?:is|are|would\ be|will\ be|comes\ to)\b)[*_]{0,3}(?:\ (?:that|thus|then|therefore)\b)?\ ?:?"
    r"|$|\.(?=[A-J]\b))"
    r"|^[\s>*_#-]{0,12}(?P<line>A(?=[*_]{0,3}\ ?:)|(final\ )?ans(wer)?)[*_]{0,3}(?:\ ?[:.)=]|\ (?=[($\d-]|[A-J]\b))",
    re.IGNORECASE | re.MULTILINE,
)
_IS_IT = r"\ is\ (?:the\ )?(?:correct|right|best)?\ ?(?:answer|choice|option|correct)\b"
_CHOICE_CUE = re.compile(
    r"\b(?i:option|choice)\b(?:\ (?:is|should\ be|would\ be))?\ ?[:=]?(?=\W{0,4}[A-J]\b)"
    r"|\b(?i:answer|ans)\ (?=\(?[A-J]\)?\W*$)"
    rf"|(?<!\w)(?=\(?[A-J]\)?{_IS_IT})",
    re.MULTILINE,
)
_LABEL_CUE = re.compile(r"\b(?:label|verdict)\b\ ?(?:is|:|=)", re.IGNORECASE)
_HEADING = re.compile(r"\W*(?:(?:as follows|below|found|obtained|calculated|given)\b[^.\n\d]*:?$|step\b|part\b)", re.I)
_VERDICT = re.compile(r"\W*(?:correct|right|wrong|incorrect|reasonable|verified|consistent)\b", re.I)

_LATEX: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\\[$]", "$"), (r"\\%", "%"), (r"\{,\}", ","), (r"(?<=\d)\\[,!](?=\d{3})", ""), (r"\\[,;:! ]", " "),
        (r"\\(?:text|mathrm|mathbf|textbf|textit|mbox|operatorname|mathit|rm)\ ?\{([^{}]*+)\}", r"\1"),
        (r"(?<=\d)\\[dtc]?frac\ ?\{(\d{1,9})\}\ ?\{(\d{1,9})\}", r" \1/\2"),
        (r"\\[dtc]?frac\ ?\{([^{}]*+)\}\ ?\{(\d{1,9})\}", r"\1/\2"),
        (r"\\[dtc]?frac\ ?\{([^{}]*+)\}\ ?\{([^{}]*+)\}", r"(\1)/(\2)"), (r"\\[dtc]?frac(\d)(\d)", r"\1/\2"),
        (r"\\(?:times|cdot|ast)(?![A-Za-z])", "*"), (r"\\div(?![A-Za-z])", "/"),
        (r"\\(?:left|right|displaystyle|quad|qquad)(?![A-Za-z])", ""), (r"\^\ ?\{?\\circ\}?", " degrees"),
        (r"\\(?:approx|equiv)(?![A-Za-z])", "="), (r"\\[()\[\]{}\\]", " "),
    )
)  # fmt: skip
_SAME_AS = str.maketrans(
    {**dict.fromkeys("×✕⋅·", "*"), **dict.fromkeys("÷⁄∕", "/"), **dict.fromkeys("−–﹣‐‑", "-"), "≈": "=", "’": "'"}
    | {"\r": "\n", "\t": " ", "⇒": " so ", "∴": " so "}
)


def _ascii(char: str) -> str:
    """What a character other than printable ASCII stands for in an answer."""
    category = unicodedata.category(char)
    if category == "Nd":
        return str(unicodedata.decimal(char))
    if (stands := {"Zs": " ", "Cc": " ", "Sc": "$", "Cf": ""}.get(category)) is not None:
        return stands
    if unicodedata.decomposition(char).startswith("<fraction>"):
        return " " + unicodedata.normalize("NFKC", char).replace("⁄", "/")
    return chr(ord(char) - 0xFEE0) if "！" <= char <= "～" else char


def _annotated(match: re.Match[str]) -> str:
    # A calculator annotation is followed by its result; where a model forgot it, the result is kept.
    return "" if match[2] or "=" not in match[1] else match[1].rpartition("=")[2]


def _clean(text: str) -> str:
    text = re.sub(r"(?<=\d)[\u2009\u202f\u00a0](?=\d{3}(?!\d))", "", text.replace("\r\n", "\n")).translate(_SAME_AS)
    odd = {ord(char): _ascii(char) for char in set(text) - {"\n"} if not " " <= char <= "~"}
    text = _ANNOTATION.sub(_annotated, text.translate(odd))
    if "\\" in text:
        for _ in range(2):  # twice: \text inside \text, \frac inside \text
            for pattern, new in _LATEX:
                text = pattern.sub(new, text)
    return re.sub(r"=\ ?-\ (?=[\d$.])", "= -", text).replace("`", "")


def _first_turn(text: str, kind: str) -> str:
    text = text.rpartition("</think>")[2]
    for pattern in (_STOP, _NEXT_TURN):
        for match in pattern.finditer(text):
            if text[: match.start()].strip(" \n#*"):  # an echo of the question at the very start is no next turn
                text = text[: match.start()]
                break
    found = list(_HASHES.finditer(text)) if kind == "number" else []
    for first, second in pairwise(found):
        if not _CORRECTION.search(text, first.end(), second.start()):
            line = text.find("\n", first.end(), second.start())
            return text[: line if line >= 0 else second.start()]
    return text


def _bare(content: str) -> str:
    return content.replace("**", " ").replace("__", " ").strip(" \n*_$:=>#")


def _number(content: str) -> str | None:
    value = arithmetic.stated(content)
    return None if value is None else arithmetic.written(value)


_LETTER = re.compile(
    r"(?:(?:option|choice|letter|answer)\W{0,3}|(?:is|be)\W+){0,2}(\()?\W{0,2}?([A-J])(?![\w'])(\W{0,2}[).:,]|$)?", re.I
)
_MORE_LETTERS = re.compile(
    r"\W*(?:or|and|,|/)\W*(?:option\W*)?\(?[A-J]\b(?:\W|$)|.{0,200}\b(?:or|and)\s*\([A-J]\)", re.IGNORECASE
)
# Neither article nor pronoun. "A is taller than B" is no answer, so "is" alone does not do.
_NO_ARTICLE = re.compile(rf"[AI](?:{_IS_IT}|\ is\ (?:the\ )?(?:right|best|true)\W*$)|A\ as\b(?!\ well\b)")


def _choice(content: str) -> str | None:
    content = _bare(content[:MAX_CONTENT]).lstrip("[{\"' ")
    match = _LETTER.match(content)
    if not match or _MORE_LETTERS.match(content, match.end()):
        return None
    rest, letter = content[match.end() :], match[2]
    marked = match[1] or match[3] is not None or not rest.strip(" .\"'])}*_\n$")
    certain = letter.isupper() and (letter not in "AI" or _NO_ARTICLE.match(content, match.start(2)))
    if marked or certain or re.match(r"\s*(?:because|since|[).:,;\]*\n])", rest):
        return letter.upper()
    return None  # the article or the pronoun


def _label(content: str) -> str | None:
    first = re.split(r"[.,;:!?\n]|\b(?:because|since)\b", _bare(content[:MAX_CONTENT]), maxsplit=1)[0]
    label = _text(first)
    return label if label and re.search(r"[^\W_]", label) and len(label.split()) <= 3 else None


def _text(content: str) -> str | None:
    content = _bare(content[:MAX_CONTENT]).split("\n")[0]
    content = re.sub(r"^\(?[A-Ja-j]\)\ ?(?=.)", "", content)  # the letter of a choice whose words follow
    content = re.split(r"(?<=\w{4})[.!?]\ (?=[A-Z])", content, maxsplit=1)[0]
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", content).casefold()).replace("'", "")
    plain = re.sub(r"(?<=\d),(?=\d{3})", "", folded)  # points and signs of numbers stay, as does "c++"
    kept = re.sub(r"(?!\.\d)(?!(?<!\w)-\d)[.,;:!?\"()\[\]{}_‘“”«»…—-]", " ", plain)
    return _bare(" ".join(kept.split())) or _bare(" ".join(folded.split())) or None


def _list(content: str) -> str | None:
    line = re.sub("->|[<>→]", " ", _bare(content[:MAX_CONTENT]).split("\n")[0]).strip(" .")
    if ", " in line:
        line = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", line)
    parts = re.split(r"[,;]+\s*(?:and\s+)?|\s+and\s+" if re.search("[,;]", line) else r"[\s&]+", line)
    items = [item for part in parts if (item := _item(part))]
    return (", " if any(" " in item for item in items) else " ").join(items) or None


def _item(part: str) -> str:
    part = " ".join(part.casefold().strip(" \"'[](){}*_.:=$#&>").split())
    value = arithmetic.leading(part)
    if value and value[0] == len(part) and value[1] is not None:
        return arithmetic.written(value[1]) or ""
    return part if part != "and" and re.search(r"[^\W_]", part) else ""


def _expression(content: str) -> str | None:
    line = _bare(content[:MAX_CONTENT]).split("\n")[0].replace("$", "").rstrip(" .")
    line = re.sub(r"(?<=[\d)])\s*[xX]\s*(?=[\d(])", "*", line)
    for side in line.split("=")[:2]:
        if (found := arithmetic.well_formed(side)) is not None:
            return found
    return None


_READERS: dict[str, Callable[[str], str | None]] = {
    "number": _number, "choice": _choice, "label": _label, "text": _text, "list": _list, "expression": _expression,
}  # fmt: skip


def _heads(cue: re.Match[str], content: str, more: bool, kind: str) -> bool:
    """Whether the cue is a heading, with the solution and not the answer behind it."""
    line = content.strip().partition("\n")[0]
    hashed = bool(cue.groupdict().get("hash"))
    if hashed and kind in ("number", "expression"):
        words = line.strip(" *#$")
        return more and bool(words[:1].isalpha() or re.match(r"\d+[.):]\s+[A-Za-z]", words))
    if kind == "text" or hashed:
        return False
    if _HEADING.match(line):
        return True
    said = cue.string[max(cue.start() - 8, 0) : cue.end()].lower().rstrip("*_ ")
    if said[-1:] not in (":", ".", "=") or "final" in said:
        return False
    if kind != "number":
        return len(content.strip()) > len(line) and _READERS[kind](content) is None
    first, *others = [*arithmetic.sentences(content), ""][:3]
    # "Answer: 18. Because ..." is an answer; "Answer: 48/2 = 24 clips. ..." begins the working.
    working = "=" in first or len(first.split()) > 4 or len(arithmetic.numbers(first)) > 1
    return bool(others and others[0]) and (working or first.strip()[:1].isalpha())


def _cued(text: str, kind: str) -> tuple[bool, str | None, int]:
    """Whether a cue decides, the answer behind it, and where the text after the last heading starts."""
    cues = list(_CUE.finditer(text))
    if also := {"choice": _CHOICE_CUE, "label": _LABEL_CUE}.get(kind):
        cues = sorted([*cues, *also.finditer(text)], key=lambda cue: (cue.start(), cue.end()))
    last, until, start = len(text.rstrip()), len(text), 0
    for cue in reversed(cues):
        if (box := cue.groupdict().get("box")) is not None:
            return True, _READERS[kind](box), 0
        content = text[cue.end() : until][: 2 * MAX_CONTENT]
        until = cue.start() if content.strip() else until  # "find answer": the last word is no cue then
        line = content.partition("\n")[0]
        content = line if cue.groupdict().get("hash") else content
        if _heads(cue, content, cue.end() + len(line) < last, kind):
            start = max(start, cue.end())
            continue
        wordy = kind in ("text", "label")  # where "correct" may itself be the answer
        if content.strip(" \n" if kind == "text" else " \n*_$:.=#()[]") and (wordy or not _VERDICT.match(content)):
            return True, _READERS[kind](content), 0
    return bool(cues) and not start, None, start


def _last_line(text: str, kind: str) -> str | None:
    lines = text.strip()[-10 * MAX_CONTENT :].split("\n")
    line = _bare(lines[-1])
    if kind == "choice":
        listed = re.compile(r"\(?[A-Ja-j]\s?[).:]")
        options = len(lines) > 1 and listed.match(_bare(lines[-2])) and listed.match(line)
        return None if options else _choice(re.sub(r"^(?:so|thus|hence|therefore)\W+", "", line, flags=re.I))
    if kind == "list":
        found = _list(line.rpartition(":")[2]) or ""
        short = all(len(item.split()) <= 3 for item in found.split(", ")) or re.fullmatch(r"[\d\s./-]+", found)
        return found if found and (short or len(lines) == 1) else None
    limit = {"label": 3, "text": 12}.get(kind, len(line))
    return None if len(line.split()) > limit or (kind == "text" and len(lines) > 1) else _READERS[kind](line)


def extract(text: str, kind: str) -> str | None:
    """The final answer that `text` says, normalised for `kind`; None where it says none that is clear.

    Args: text, any string; kind, one of `KINDS` (for "none" there is never an answer).
    Raises ValueError for an unknown kind, nothing for any text."""
    if kind not in KINDS:
        raise ValueError(f"unknown answer kind {kind!r}; known are {', '.join(KINDS)}")
    if kind == "none":
        return None
    turn = _first_turn(_clean(text), kind)
    decided, found, start = _cued(turn, kind)
    if kind == "number" and not decided:
        value = arithmetic.concluded(turn[start:])
        return None if value is None else arithmetic.written(value)
    found = found if decided else _last_line(turn[start:], kind)
    for _ in range(4):  # an answer reads as itself, behind a cue too
        said, found = found, found and _READERS[kind](_clean(found))
        if said == found:
            return found if found and _cued(f"#### {found}", kind)[1] == found else None
    return None


def same(a: str, b: str, kind: str) -> bool:
    """Whether two answers, extracted ones or short raw ones, are equal under `kind`.

    Numbers and expressions compare by exact value, everything else by its normalised form; what
    cannot be read is equal to nothing. Raises ValueError for an unknown kind."""
    if kind not in KINDS:
        raise ValueError(f"unknown answer kind {kind!r}; known are {', '.join(KINDS)}")
    if kind == "none":
        return False
    left, right = _READERS[kind](_clean(a)), _READERS[kind](_clean(b))
    if left is None or right is None or kind not in ("number", "expression"):
        return left is not None and left == right
    value = arithmetic.evaluate(left)
    return value is not None and value == arithmetic.evaluate(right)
