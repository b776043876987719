"""Join the wrapped lines of a note and keep the original position of every character.

Notes of MIMIC are wrapped at about 75 characters, in the middle of sentences ("no evidence of" /
"pneumonia"). A line break can also end a sentence, namely where the line ends a list item, a
heading or a paragraph. A break is therefore treated as a wrap if it is a single break, the line
before it is long and does not end like a sentence, and the next line begins like running text and
not like a heading.

A sign is separated from the finding that it marks ("-fever", "+cough"), which the tokenizer would
take as one word.
"""

import re
from bisect import bisect_right
from typing import NamedTuple

WRAPPED_FROM = 50
"""Minimum number of characters of a line that may have been wrapped."""

_SPACE = re.compile(
    r"[ \t\xa0]*(?:\r?\n[ \t\xa0]*)+|[ \t\xa0]{2,}|[\t\xa0]"
    r"|(?:(?<=[\s(,;/][-+])|(?<=\A[-+]))(?=[A-Za-z])"  # between a sign and a word
)
_ENDS = ".:;?!"
_GOES_ON = re.compile(r"(?![A-Z][\w/&' -]{1,50}:(?:\s|\Z))[A-Za-z(]|\d+(?![.)\d])")


class Flowed(NamedTuple):
    """A text with one space or one line break between words, and its mapping to the original.

    places[i] is the position in the original of the piece that begins at starts[i] in `text`.
    """

    text: str
    starts: list[int]
    places: list[int]

    def original(self, start: int, end: int) -> tuple[int, int]:
        """Return the span of the original text that corresponds to `text[start:end]`."""
        return self._place(start), self._place(end - 1) + 1

    def _place(self, position: int) -> int:
        piece = bisect_right(self.starts, position) - 1
        return self.places[piece] + position - self.starts[piece]


def flow(text: str) -> Flowed:
    """Join wrapped lines and reduce every other run of blanks to one space or one line break."""
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
