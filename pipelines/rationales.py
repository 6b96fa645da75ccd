"""Rationale and label of a teacher's chain of thought, and the label that several samples agree on. Pure.

Source: Distilling Step-by-Step (arXiv 2305.02301, §3.1): a few-shot prompt of (input, rationale, label) makes a
teacher write a rationale and then, behind a fixed cue, its label. Rules here, in this order:

1. What follows a stop token or opens the next few-shot question ("Q:", "Premise:", ...) is another turn: a base
   model runs on past its answer, and an answer given there is none to this question. Heads that a rationale may hold
   as well ("Statement:", "Example:", ...) open one only behind a cue.
2. The first cue with something behind it decides: "answer is", "Answer:", "####", `\\boxed{}`. Only a firmer cue of
   the same paragraph passes it ("the closest answer is relax. So the answer is (e) relax"). A guess ("so the answer
   must be a place") holds only where no other cue follows. Of kind "label", a line "Answer: neutral" also passes "so
   the answer is unclear", from the paragraph's end too.
3. The label ends with its line or sentence, and loses the final full stop and the letter of its option, for which a
   name's initials ("J. Edgar") are not taken; what is cut off in mid-word stays as it is, since nothing tells it from
   a whole word.
"""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice

from pipelines import answers

MAX_LABEL = 300  # characters; more is no label but a text
MAX_CUES = 100  # looked at; an output with more without a label is a loop
GUESS, MENTION, FIRM, FIELD = range(4)  # ranks of cues: one passes those below it

_STOP = re.compile(r"</s>|<\|[a-z_]{1,20}\|>|<end_of_turn>|<eos>|\[/?INST\]")
# A model that runs on may leave out the white space: "bank.Q:", "neutralPremise:".
_NEXT = re.compile(
    r"(?:(?<=[\s.!?])|^|(?<=[a-z])(?=[#*_]{0,6}(?:Q|Premise)\b))[#*_]{0,6}\ ?(?:(?:Q|Question|QUESTION|Premise|PREMISE)"
    r"(?:\ ?\d{1,4})?|(?<=\n)(?:Human|User)|(?<=\n\n)Hypothesis(?:\ \d{1,4})?)[*_]{0,3}\ ?:"
)
_NEXT_FIELD = re.compile(
    r"(?<=\n\n)(?:Hypothesis|Input|Context|Passage|Text|Sentence|Statement|Claim|Problem|Example|Exercise|Article"
    r"|Story|Review|Task|Instruction)(?:\ \d{1,4})?[*_]{0,3}\ ?:"
)
_CUE = re.compile(
    r"(?P<so>\b(?:so|thus|therefore|hence|consequently|overall|in\ conclusion)\b,?\s{1,2})?"
    r"(?P<the>\b(?:the|my|our)\s)?(?P<firm>\b(?:final|correct|right)\s)?(?:\b(?:best|closest|most\ \w{1,20})\s)?"
    r"\b(?P<noun>answer|label|option|choice)(?P<plural>s?)[*_]{0,3}(?:\ to\ (?:the|this)\ \w{1,20})?"
    r"(?:\ ?(?P<colon>[:=])|\ (?:is|are|would\ be|will\ be|(?P<guess>(?:should|must|could|has\ to)\ be|was))\b"
    r"(?:,?\ (?:(?P<hence>therefore|thus|hence)|(?:(?:most\ )?likely|probably)"
    r"(?=,?\ (?!(?:to|and|or|but|because|since|as)\b)[\w(\[\"'“$\\*]))\b,?)?"  # "likely" alone may be the label
    r"(?:\ that\b)?\ ?(?P<listed>:?))[*_]{0,3}"
    r"|^(?P<bare>(?:final\ )?answer)(?=\ \(?[A-J]\)?[ .*]{0,4}$)"
    r"|(?<!\#)(?P<hash>\#{4,10})(?!\#)"
    r"|\\f?boxed\ ?\{(?P<box>(?:[^{}\n]|\{[^{}\n]{0,300}\}){1,300})\}",
    re.IGNORECASE | re.MULTILINE,
)
_BOX = re.compile(r"\\f?boxed\ ?\{((?:[^{}\n]|\{[^{}\n]{0,300}\}){1,300})\}")
_HEAD = re.compile(r"^\s*(?:A|Answer):", re.IGNORECASE)  # the head of the turn, said again
_TITLE = re.compile(r"^#{1,6}\ ?[*_]{0,3}((?:final\ )?answer)[ *_]{0,4}$", re.IGNORECASE | re.MULTILINE)
_SUPPOSED = re.compile(r"\b(?:if|whether|unless|what|when)\s+$", re.IGNORECASE)
_HEADING = re.compile(
    r"(?:step|part|solution|reasoning|explanation|rationale|analysis|question|(?:final\ )?answer|conclusion)\b"
    r"(?![*_]{0,3}\ ?:)",
    re.IGNORECASE,
)
_ANNOUNCED = re.compile(r"(?:as follows|below|found|obtained|calculated|determined|let['’]?s|let us)\b", re.IGNORECASE)
# A full stop ends the label, but not that of "St. Louis" or "Washington D.C. area".
_END = re.compile(
    r"(?<!\.\w)(?<!\bSt)(?<!\bMt)(?<!\bFt)(?<!\bDr)(?<!\bMr)(?<!\bMs)(?<!\bMrs)(?<!\bvs)[.!?](?=[*_\"”]{0,3}\s+\S)"
    r"|[,;]?\s+because\b(?=,?\s+\S)|,\s+(?:since|as)\b|(?:\s+|(?<=[a-z.!?]))Premise\b",
)
# "J. K. Rowling", "J. Edgar"; a name of one initial has nothing but a full stop or a reason behind it.
_INITIALS = (
    r"[A-Z]\.\ (?:[A-Z]\.\ ?){1,3}(?=[A-Z]\w)"
    r"|[F-HJ-Z]\.\ (?=[A-Z][\w'’-]++(?:\ [A-Z][\w'’-]++){0,2}(?:\.|$|,?\ because\b))"  # A to E are options, I a one
)
_INITIAL = re.compile(_INITIALS)
_OPTION = re.compile(
    rf"(?!(?-i:{_INITIALS}))(?:(?:option|choice)\ )?"
    r"(?:[(\[][A-J][)\]][:.,]?\s*|[A-J](?:\)|[.:](?=\s))\s*)(?=[\w\"'“‘])",
    re.IGNORECASE,
)
_OPTION_BEHIND = re.compile(r"\s*[(\[][A-J][)\]]$", re.IGNORECASE)
_MARKED = re.compile(r"[(\[][A-J][)\]]", re.IGNORECASE)


def split(raw: str, kind: str = "text") -> tuple[str, str] | None:
    """(rationale, label) of one raw output of a teacher; None where its first turn gives no answer.

    The rationale is the text before the cue ("" where the output begins with its answer), the label the words of
    the answer: "math problem" of "(d) math problem.", "(84 / 2)" of "(84 / 2).". With `kind` "choice" the option's
    letter stays before the words, for `answers.same` to read. Raises nothing, on any string."""
    turn = _first_turn(raw)
    found: tuple[int, str] | None = None
    best, paragraph = GUESS, len(turn)
    for cue in islice(_CUE.finditer(turn), MAX_CUES):
        beyond = cue.start() > paragraph
        if beyond and (kind != "label" or turn[paragraph : cue.start()].strip(" \n#*_>-")):
            break
        if _is_other(cue) or not (label := _label(cue, kind)):
            continue
        rank = _rank(cue, label, kind)
        if GUESS < best >= rank or (beyond and rank < FIELD):
            continue
        found, best = (cue.start(), label), rank
        if rank > GUESS:
            ends = turn.find("\n\n", cue.end())
            paragraph = ends if ends >= 0 else len(turn)
    return (_HEAD.sub("", turn[: found[0]]).strip().rstrip(" *_#>,;\n"), found[1]) if found else None


def vote(labels: Sequence[str | None], kind: str) -> tuple[str, float] | None:
    """The label that most samples of one row agree on, and the share of all samples that do: self-consistency
    (arXiv 2203.11171, §2, the unweighted majority vote).

    Args: `labels`, one a sample, None where it had none; `kind`, under which `answers.same` compares them. Of
    labels that are the same the first spelling is given; a tie goes to the label seen first. A label that cannot be
    read under `kind` counts among the samples but agrees with none, not with itself either.
    Returns (label, agreement in (0, 1]), or None where no label can be read. Raises ValueError for an unknown kind."""
    if kind not in answers.KINDS:
        raise ValueError(f"unknown answer kind {kind!r}; known are {', '.join(answers.KINDS)}")
    votes: Counter[str] = Counter()
    for label, count in Counter(label for label in labels if label is not None).items():
        first = next((other for other in votes if answers.same(other, label, kind)), label)
        if first is not label or answers.same(label, label, kind):
            votes[first] += count
    if not votes:
        return None
    label, count = votes.most_common(1)[0]  # keeps the order of first sight among equals
    return label, count / len(labels)


def _first_turn(raw: str) -> str:
    """What the teacher wrote to this question: without thoughts in tags, and up to the next turn."""
    text = _TITLE.sub(r"\1:", raw.replace("\r\n", "\n").replace("\r", "\n").rpartition("</think>")[2])
    for pattern in (_STOP, _NEXT):
        for match in pattern.finditer(text):
            before = text[: match.start()].strip(" \n#*_")
            # At the very start the question is only repeated.
            if before and not (match[0].startswith("Hypothesis") and _repeated(before)):
                text = text[: match.start()]
                break
    cue = next((cue for cue in islice(_CUE.finditer(text), MAX_CUES) if not _is_other(cue)), None)
    head = _NEXT_FIELD.search(text, cue.end()) if cue else None
    return text[: head.start()] if head else text


def _repeated(before: str) -> bool:
    """Whether a text that begins with its question has said only the first half of it."""
    return before.startswith(("Premise", "PREMISE")) and "\nHypothesis" not in before


def _at_line_start(cue: re.Match[str]) -> bool:
    before = cue.string[max(cue.start() - 12, 0) : cue.start()].rstrip(" *_#>-")
    return not before or before.endswith("\n")


def _rank(cue: re.Match[str], label: str, kind: str) -> int:
    """How far the cue concludes, as the few-shot prompts teach it, and does not only mention an answer.

    Where the text begins with it, a rationale and a cue of its own may still follow."""
    part = cue.groupdict()
    if part["guess"]:
        return GUESS
    if not cue.string[: cue.start()].strip(" \n#*_>"):
        return MENTION
    if part["hash"] or part["bare"] or (part["colon"] and _at_line_start(cue)):
        return FIELD if kind == "label" else FIRM
    right = part["firm"] and not label.lower().startswith("not ")  # "the correct answer is not bank" leaves it open
    return FIRM if part["so"] or part["hence"] or right or (part["colon"] and part["noun"] == "Answer") else MENTION


def _is_other(cue: re.Match[str]) -> bool:
    """Whether the words of a cue are none: "whether the answer is ...", "only answers are ...", "the label is"."""
    part = cue.groupdict()
    if not part["noun"]:
        return False
    if part["guess"] and not part["so"]:  # "the answer must be a place"
        return True
    if part["noun"].lower() != "answer":
        field = part["noun"].lower() == "label" and part["colon"] and _at_line_start(cue)
        return bool(part["plural"]) or not (part["so"] or part["hence"] or part["firm"] or field)
    if part["plural"] and not part["the"]:
        return True
    return bool(_SUPPOSED.search(cue.string, max(cue.start() - 12, 0), cue.start()))


def _label(cue: re.Match[str], kind: str) -> str:
    """The label behind a cue; "" where there is none."""
    part, text = cue.groupdict(), cue.string
    if part["box"]:
        return _bare(part["box"], kind)
    rest = text[cue.end() : cue.end() + 2 * MAX_LABEL]
    line, _, below = rest.partition("\n")
    if not line.strip(" *_$\\[(") and (part["colon"] or part["listed"]):
        line = below.strip(" \n*_$").partition("\n")[0]  # "Answer:" with the answer on the next line
    line = line.strip()
    if _ANNOUNCED.match(line) or (part["hash"] and _HEADING.match(line.lstrip(" *#"))):
        return ""
    if box := _BOX.search(line):
        return _bare(box[1], kind)
    if part["hash"] and (inner := _CUE.search(line)):  # "#### Answer: 18"
        line = line[inner.end() :]
    return _bare(line, kind)


def _bare(content: str, kind: str) -> str:
    """`content` without marks around it, the sentence after it and, but for kind "choice", its option's letter."""
    content = content.strip(' \n\t*_`"“”:=#→')
    option = _OPTION.match(content)
    start = option.end() if option else 0
    initials = _INITIAL.match(content, start)
    end = _END.search(content, initials.end() if initials else start)
    words = content[start : end.start() if end else len(content)].strip(' \n\t*_`"“”')
    ended = words.endswith(".")
    words = words.removesuffix(".").rstrip(' *_`"”')
    for left, right in (("$", "$"), ("\\(", "\\)"), ("'", "'"), ("‘", "’")):
        if words.startswith(left) and words.endswith(right) and len(words) > len(left + right):
            words = words.removeprefix(left).removesuffix(right).strip()
    behind = _OPTION_BEHIND.search(words) if len(_MARKED.findall(words)) == 1 else None
    letter = content[:start]
    if behind and behind.start():
        words, letter = words[: behind.start()], letter or behind[0].strip() + " "
    words = letter + words if kind == "choice" else words
    # Signs alone are a label ("] } ]") where a full stop shows that they are whole.
    said = re.search(r"[^\W_]", words) or (ended and words.strip(" .([{"))
    return words if said and len(words) <= MAX_LABEL else ""
