"""Read what a line of reasoning states about the items that it names.

    Potassium | low | -> | Potassium Chloride       a state, in a cell
    The potassium of 2.9 mEq/L at 06:10 is low.     a value, its unit, its time and a state
    Heparin was held.                               a status: not given

Only statements that can be read without doubt are returned: a word beside the name, or joined to it
by "is" and the like. What stands further away is not checked.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from ehrr1.reasoning.chain import BAR
from ehrr1.reasoning.names import Named

Kind = Literal["state", "value", "status", "time"]

_STATES = {
    "high elevated raised": ("high",),
    "low": ("low",),
    "increased": ("high", "rising"),
    "reduced decreased diminished": ("low", "falling"),
    "abnormal deranged flagged": ("abnormal",),
    "normal unremarkable": ("normal",),
    "rising climbing increasing uptrending up-trending": ("rising",),
    "falling dropping declining decreasing downtrending down-trending": ("falling",),
    "once": ("once",),
    "repeated": ("repeated",),
}
STATES = {word: states for words, states in _STATES.items() for word in words.split()}
STATES |= {
    "above normal": ("high",),
    "above range": ("high",),
    "above the reference range": ("high",),
    "below normal": ("low",),
    "below range": ("low",),
    "below the reference range": ("low",),
    "out of range": ("abnormal",),
    "outside the reference range": ("abnormal",),
    "within normal limits": ("normal",),
    "within the reference range": ("normal",),
    "within range": ("normal",),
    "in range": ("normal",),
    "trending up": ("rising",),
    "trending down": ("falling",),
}
"""Words in lower case -> states of `facts.Citable.holds`, of which one has to be true."""

_MOVES = dict.fromkeys(["rose", "rises", "climbed", "climbs"], ("rising",))
_MOVES |= dict.fromkeys(["fell", "falls", "dropped", "drops", "declined", "declines"], ("falling",))

_ABSENT = (
    "not given|not administered|not applied|not started|held|withheld|refused|omitted|skipped"
    "|not present|not seen|absent|denied|ruled out|on hold"
)
_PRESENT = "given|administered|received"
STATUSES = dict.fromkeys(_ABSENT.split("|"), "absent") | dict.fromkeys(
    _PRESENT.split("|"), "present"
)
"""Words in lower case -> the status that they state (`reasoning.statuses`)."""


class Statement(NamedTuple):
    """A statement of a line about an item.

    said: the states of which one has to be true ("state"), the number and its unit ("value"; the
    unit may be ""), "present" or "absent" ("status"), or date and hour ("time"; the date may be
    ""). negated: whether the line says the opposite ("is not low"). beside: a number that the item
    has in the same statement, or "".
    """

    name: str
    kind: Kind
    said: tuple[str, ...]
    negated: bool = False
    beside: str = ""


def _any(words: Iterable[str]) -> str:
    longest_first = sorted(words, key=lambda word: (-len(word), word))
    return "|".join(re.escape(word).replace(r"\ ", r"\s+") for word in longest_first)


_TIME = re.compile(
    r"(?<![\w-])(?:(\d{4}-\d\d-\d\d)(?:[ T](\d\d:\d\d)(?::\d\d)?)?|(\d\d:\d\d)(?::\d\d)?)(?!\w)"
)
_ITEM = r"\x01(?P<item>\d+)\x02"
_NOUN = r"(?:\s+(?:level|value|count|result|reading|concentration)s?)?"
_KIND = r"(?:(?:serum|plasma|blood|arterial|venous|urine|latest|last|first|repeat|current)\s+)?"
_NUMBER = (
    r"(?P<number>\d[\d,]*(?:\.\d+)?)(?![\d:/-])"
    r"(?:\s?(?P<unit>%|(?!(?:is|was|at|on|and|in|by|to|from|which|calls?)\b)[A-Za-zµ°][\w/%^*µ°]*))?"
)
_LINK = (
    r"(?:\s|[,:=(-]|\x03\d+\x04|\b(?:of|at|on|is|was|are|were|remains|remained|stays|stayed|reads"
    r"|has been|came back|comes back|returned|measured|again|still|also|now|very|too|markedly"
    r"|mildly|slightly|severely|clearly|persistently|critically|significantly|newly)\b)"
)
_NO_ADJECTIVE = r"(?![\s-]*(?:risk|dose|dosage|flow|grade|salt|fat|sodium\s+diet|saline)\b)"
_WORD = _any(STATES)

_ADJECTIVE = re.compile(
    rf"(?P<no>\b(?:no|not|without|never)\s+(?:an?\s+|the\s+)?)?\b(?P<word>{_WORD})\s+{_KIND}{_ITEM}",
    re.IGNORECASE,
)
_PREDICATE = re.compile(
    rf"{_ITEM}{_NOUN}{_LINK}*(?:{_NUMBER})?{_LINK}+(?P<no>(?:not|no longer|never)\s+)?"
    rf"(?P<word>{_WORD})\b{_NO_ADJECTIVE}(?!\s+{_KIND}\x01)",
    re.IGNORECASE,
)
_VERB = re.compile(
    rf"{_ITEM}{_NOUN}(?:\s+(?:has|have))?\s+(?P<word>{_any(_MOVES)})\b(?!\s+(?:the\s+)?\x01)",
    re.IGNORECASE,
)
_VALUE = re.compile(
    rf"{_ITEM}{_NOUN}\s*(?:\b(?:of|is|was|at|reads|measured)\b|[:=(,])?\s*{_NUMBER}", re.IGNORECASE
)
_AT = re.compile(
    rf"{_ITEM}{_NOUN}\s*(?:(?:\b(?:of|is|was)\b|[:=(,])?\s*{_NUMBER})?\s*(?:\b(?:at|on)\b|[,(])?"
    r"\s*\x03(?P<time>\d+)\x04",
    re.IGNORECASE,
)
_STATUS = re.compile(
    rf"{_ITEM}\s*[,:(]?\s*(?:(?:was|were|is|are|has been|had been)\s+)?"
    rf"(?P<word>{_any(STATUSES)})\b",
    re.IGNORECASE,
)
_NO = re.compile(
    rf"\b(?P<word>no|denies|denied|without|held|withheld|refused|received)\s+"
    rf"(?:(?:the|his|her|an?|any)\s+)?{_ITEM}",
    re.IGNORECASE,
)


def in_cells(text: str) -> list[Statement]:
    """Return the statements of cells before an arrow: states and status behind the item."""
    cells = [cell.strip() for cell in text.split(BAR)]
    name, found = cells[0], []
    for cell in map(str.casefold, cells[1:]):
        if cell in STATES:
            found.append(Statement(name, "state", STATES[cell]))
        elif cell in STATUSES:
            found.append(Statement(name, "status", (STATUSES[cell],)))
    return found


def in_prose(line: str, named: Sequence[Named]) -> list[Statement]:
    """Return the statements of a line in which these items are named."""
    if not named:
        return []
    text, times = _marked(line, named)
    found = []
    for pattern in (_ADJECTIVE, _PREDICATE, _VERB):
        for match in pattern.finditer(text):
            parts = match.groupdict()
            word = " ".join(match["word"].casefold().split())
            states = STATES.get(word) or _MOVES[word]
            name, number = named[_place(match)].name, parts.get("number") or ""
            found.append(Statement(name, "state", states, bool(parts.get("no")), number))
    for match in _VALUE.finditer(text):
        name = named[_place(match)].name
        found.append(Statement(name, "value", (match["number"], match["unit"] or "")))
    for match in _AT.finditer(text):
        found.append(Statement(named[_place(match)].name, "time", times[int(match["time"])]))
    for match in (*_STATUS.finditer(text), *_NO.finditer(text)):
        word = " ".join(match["word"].casefold().split())
        status = "present" if word in _PRESENT.split("|") else "absent"
        found.append(Statement(named[_place(match)].name, "status", (status,)))
    return found


def times_of(line: str) -> list[tuple[str, str]]:
    """Return the date and the hour of each time in a line; one of the two may be ""."""
    return [(date, hour or alone) for date, hour, alone in _TIME.findall(line)]


def _place(match: re.Match[str]) -> int:
    return int(match["item"])


def _marked(line: str, named: Sequence[Named]) -> tuple[str, list[tuple[str, str]]]:
    """Return the line with its items and times replaced by their numbers, and the times."""
    times: list[tuple[str, str]] = []

    def mark(match: re.Match[str]) -> str:
        times.append((match[1] or "", match[2] or match[3] or ""))
        return f"\x03{len(times) - 1}\x04"

    parts, end = [], 0
    for number, one in enumerate(named):
        parts += [_TIME.sub(mark, line[end : one.start]), f"\x01{number}\x02"]
        end = one.end
    return "".join([*parts, _TIME.sub(mark, line[end:])]), times
