"""A note as running text: wrapped lines are joined, and every character's old place is known.

Notes of MIMIC are broken at some 75 characters, in the middle of sentences ("no evidence of" /
"pneumonia"). A sentence ends at a line break all the same where the line ends a list item, a
heading or a paragraph. So a break is taken for a wrap if it is a single one, the line before it is
long and does not end like a sentence, and the next one begins like running text.
"""

import re
from bisect import bisect_right
from typing import NamedTuple

WRAPPED_FROM = 50
"""Characters of a line that may have been wrapped."""

_SPACE = re.compile(r"[ \t\xa0]*(?:\r?\n[ \t\xa0]*)+|[ \t\xa0]{2,}|[\t\xa0]")
_ENDS = ".:;?!"
_GOES_ON = re.compile(r"[A-Za-z(]|\d+(?![.)\d])")


class Flowed(NamedTuple):
    """`text` with one space or one line break between words; `places[i]` is where the piece that
    begins at `starts[i]` begins in the original."""

    text: str
    starts: list[int]
    places: list[int]

    def original(self, start: int, end: int) -> tuple[int, int]:
        """The span of the original text that became `text[start:end]`."""
        return self._place(start), self._place(end - 1) + 1

    def _place(self, position: int) -> int:
        piece = bisect_right(self.starts, position) - 1
        return self.places[piece] + position - self.starts[piece]


def flow(text: str) -> Flowed:
    """Join wrapped lines; every other run of blanks becomes one space or one line break."""
    pieces, starts, places = [], [0], [0]
    length = last = line = 0
    for space in _SPACE.finditer(text):
        begin, end = space.span()
        breaks = space[0].count("\n")
        wrapped = breaks == 1 and begin - line >= WRAPPED_FROM and _wrapped(text, begin, end)
        pieces += [text[last:begin], "\n" if breaks and not wrapped else " "]
        length += begin - last + 1
        starts.append(length)
        places.append(end)
        last = end
        if breaks:
            line = end
    pieces.append(text[last:])
    return Flowed("".join(pieces), starts, places)


def _wrapped(text: str, begin: int, end: int) -> bool:
    return text[begin - 1] not in _ENDS and _GOES_ON.match(text, end) is not None
