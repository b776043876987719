"""Compare answers with tolerance for spelling, and for names of the same concept.

Two items match if they have a key in common. `Speller.key` gives the key of a name's spelling;
other keys (concepts, ATC classes) come from a dictionary (`ehrr1.graph.same_names`). An item of an
answer matches at most one right item, and a right item at most one of the answer.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from os.path import commonprefix

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from ehrr1.scoring.sets import reduce

LONG = 8
"""Minimum number of letters of a word in which one edit is tolerated."""

_ORDERING = """
    after and as at before by due for from in into no not of on or per than to via with without
    left right
"""
ORDERING = frozenset(_ORDERING.split())
"""Words whose place matters: names with one of them match only in the same order of words."""

Keys = frozenset[str]


class Speller:
    """Keys of names that are equal for spellings of the same name.

    These differences are ignored:

    - those of `scoring.sets.reduce`: case, punctuation, blanks, list numbers, composition of
      letters;
    - the plural ending of a word (`singular`);
    - the order of words, if they have letters only and none is in `ORDERING`;
    - one edit in a word of at least `LONG` letters: a letter added, left out or replaced, or two
      adjacent letters exchanged. The written word must be unknown, and exactly one word of the
      right answers must be that near.
    """

    def __init__(self, right: Iterable[str]):
        """Take the names that are right answers."""
        self._known = {word for name in right for word in words_of(name)}
        self._near: dict[str, set[str]] = defaultdict(set)
        for word in self._known:
            if len(word) >= LONG and word.isalpha():
                for shorter in shortened(word):
                    self._near[shorter].add(word)
        self._corrected: dict[str, str] = {}

    def learn(self, words: Iterable[str]) -> None:
        """Add words, in lower case, that are no misspellings; nothing is corrected to them."""
        self._known |= {singular(word) for word in words}

    def key(self, name: str) -> str:
        """Return the key of a name."""
        words = [self._correct(word) for word in words_of(name)]
        if all(word.isalpha() for word in words) and ORDERING.isdisjoint(words):
            words.sort()
        return " ".join(words)

    def is_unknown(self, word: str) -> bool:
        """Return whether a word may be a misspelling: a long one that is not known."""
        return len(word) >= LONG - 1 and word.isalpha() and word not in self._known

    def _correct(self, word: str) -> str:
        """Return the known word that a long unknown one is a misspelling of, or the word."""
        if not self.is_unknown(word):
            return word
        if word not in self._corrected:
            close = {known for part in shortened(word) for known in self._near.get(part, ())}
            found = [known for known in close if one_edit(word, known)]
            self._corrected[word] = found[0] if len(found) == 1 else word
        return self._corrected[word]


def words_of(name: str) -> list[str]:
    """Return the words of a name in lower case, without punctuation and plural endings."""
    return [singular(word) for word in reduce(name).split()]


def singular(word: str) -> str:
    """Return a word of at least five letters without a plural ending; "ss", "us", "is" stay."""
    if len(word) < 5 or not word.isalpha() or word.endswith(("ss", "us", "is")):
        return word
    return word[:-3] + "y" if word.endswith("ies") else word.removesuffix("s")


def shortened(word: str) -> set[str]:
    """Return a word and all that remain if one letter is left out.

    Words that are one edit apart have one of these in common.
    """
    return {word, *(word[:place] + word[place + 1 :] for place in range(len(word)))}


def one_edit(one: str, other: str) -> bool:
    """Return whether words differ by one letter, or by the order of two adjacent ones."""
    start = len(commonprefix([one, other]))  # noqa: RUF071 (words are no paths)
    one, other = one[start:][::-1], other[start:][::-1]
    end = min(len(commonprefix([one, other])), len(one), len(other))  # noqa: RUF071
    one, other = one[end:], other[end:]
    return max(len(one), len(other)) == 1 or (len(one) == 2 and one == other[::-1])


def matches(said: Sequence[Keys], right: Sequence[Keys]) -> int:
    """Return the largest number of pairs of an item of the answer and a right item that match.

    Items are given by their keys. No item is in two pairs.
    """
    if not said or not right:
        return 0
    edges = np.array([[not one.isdisjoint(other) for other in right] for one in said])
    found = maximum_bipartite_matching(csr_array(edges), perm_type="column")
    return int((found >= 0).sum())


def tolerant_f1(said: Iterable[str], right: Iterable[str], keys: Mapping[str, Keys]) -> float:
    """Return the F1 of an answer, with the matches that `keys` of its items and of `right` allow.

    Items are distinct, stripped and in lower case. Two empty sets agree: 1.
    """
    one, other = [keys[item] for item in said], [keys[item] for item in right]
    if not one and not other:
        return 1.0
    return 2 * matches(one, other) / (len(one) + len(other))
