"""Find names in prose, as whole words."""

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

ANY_CASE = 5
"""Minimum length of names matched in any case; shorter ones (Na, PT) match only as spelled."""

_TOKEN = re.compile(r"\w+|[^\w\s]")


class Named(NamedTuple):
    """A name at `text[start:end]`."""

    start: int
    end: int
    name: str


def key_of(name: str) -> str:
    """Return the form in which names are compared: short ones as spelled, others in any case."""
    return name.casefold() if len(name) >= ANY_CASE else name


class Names:
    """An index of names by their first words."""

    def __init__(self, names: Iterable[str]):
        self._index: dict[str, list[tuple[list[str], str]]] = {}
        for name in names:
            tokens = _TOKEN.findall(name.casefold())
            if tokens:
                self._index.setdefault(tokens[0], []).append((tokens, name))
        for entries in self._index.values():
            entries.sort(key=lambda entry: (-len(entry[0]), entry[1]))

    def candidates(self, token: str) -> Sequence[tuple[list[str], str]]:
        """Return the names that begin with a word, longest first, with their words."""
        return self._index.get(token, ())


def find_names(text: str, *indices: Names) -> list[Named]:
    """Return the names in a text from left to right, without overlaps.

    At each word the longest name is taken: "Sodium" is not found in "Heparin Sodium". A name may be
    wrapped between any two words.
    """
    spans = [match.span() for match in _TOKEN.finditer(text)]
    tokens = [text[start:end].casefold() for start, end in spans]
    found, place = [], 0
    while place < len(tokens):
        fitting = [
            (len(words), name)
            for index in indices
            for words, name in index.candidates(tokens[place])
            if tokens[place : place + len(words)] == words
            and _as_spelled(text[spans[place][0] : spans[place + len(words) - 1][1]], name)
        ]
        if fitting:
            length, name = max(fitting)
            found.append(Named(spans[place][0], spans[place + length - 1][1], name))
            place += length
        else:
            place += 1
    return found


def _as_spelled(written: str, name: str) -> bool:
    return len(name) >= ANY_CASE or written == name
