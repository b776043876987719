"""Precision and recall of the mentions that are evidence, on a gold set of synthetic text."""

import importlib.util
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest

from ehrr1.graph.text.mentions import EVIDENCE, Mention, Reader, open_reader, open_source
from ehrr1.graph.text.rule_tables import table
from tests.conftest import shared_folder
from tests.test_linking import open_concepts

if importlib.util.find_spec("medspacy") is None:
    pytest.skip("no medspaCy: make setup", allow_module_level=True)

GOLD_EVIDENCE = {"affirmed", "uncertain", "chronic"}
STATUSES = GOLD_EVIDENCE | {"negated", "family", "historical", "hypothetical", "other"}
TOTAL = 329
GOLD = Path(__file__).with_name("gold_mentions.txt")
_MARKED = re.compile(r"\[(?P<words>[^|\]=]+)(?:=(?P<name>[^|\]]+))?\|(?P<status>\w+)\]")


class Gold(NamedTuple):
    """A marked mention at `text[start:end]`; `name` is the expected concept's, or None for any."""

    start: int
    end: int
    name: str | None
    status: str


class Snippet(NamedTuple):
    """A text of the gold set, its half ("develop" or "held out") and its marked mentions."""

    title: str
    half: str
    text: str
    mentions: list[Gold]


@dataclass
class Score:
    """Counts of mentions that are evidence: those reported, those marked, and both."""

    reported: int = 0
    right: int = 0
    marked: int = 0
    recalled: int = 0
    statuses: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @property
    def precision(self) -> float:
        """Return the share of reported evidence that is right."""
        return self.right / self.reported

    @property
    def recall(self) -> float:
        """Return the share of marked evidence that is reported as evidence."""
        return self.recalled / self.marked


def snippets(half: str) -> Iterator[Snippet]:
    """Yield the snippets of one half of the gold set."""
    for block in GOLD.read_text(encoding="utf-8").split("\n=== ")[1:]:
        heading, marked = block.split("\n", 1)
        title, its_half = heading.split(", ")
        if its_half == half:
            yield Snippet(title, its_half, *unmarked(marked.rstrip("\n")))


def unmarked(marked: str) -> tuple[str, list[Gold]]:
    """Return the plain text of a marked text and its mentions."""
    text, mentions, last = "", [], 0
    for found in _MARKED.finditer(marked):
        text += marked[last : found.start()]
        start = len(text)
        text += found["words"]
        mentions.append(Gold(start, len(text), found["name"], found["status"]))
        last = found.end()
    return text + marked[last:], mentions


def overlapping(mention: Mention, gold: Sequence[Gold]) -> Gold | None:
    """Return the marked mention that shares the most characters with `mention`, or None."""
    shared = [(min(mention.end, one.end) - max(mention.start, one.start), one) for one in gold]
    length, best = max(shared, key=lambda pair: pair[0], default=(0, None))
    return best if length > 0 else None


def score(reader: Reader, half: str) -> Score:
    """Compare what a reader finds in one half with the marked mentions."""
    total = Score()
    for snippet in snippets(half):
        text, recalled = snippet.text, set()
        for mention in reader.read(text):
            one = overlapping(mention, snippet.mentions)
            words = f"{snippet.title}: {text[mention.start : mention.end]!r} ({mention.name})"
            if one is None or one.status != "other":
                total.statuses[one.status if one else "unmarked", mention.status] += 1
            if mention.status not in EVIDENCE or (one is not None and one.status == "other"):
                continue
            total.reported += 1
            named = one is not None and (one.name is None or one.name == mention.name)
            if one is not None and named and one.status in GOLD_EVIDENCE:
                total.right += 1
                recalled.add(one)
            else:
                marked = f"{one.status} {one.name or ''}" if one else "not marked"
                total.faults.append(f"{words} {mention.status}, marked {marked}")
        evidence = {one for one in snippet.mentions if one.status in GOLD_EVIDENCE}
        total.marked += len(evidence)
        total.recalled += len(evidence & recalled)
        total.faults += [
            f"{snippet.title}: missed {text[one.start : one.end]!r} {one.status}"
            for one in sorted(evidence - recalled)
        ]
    return total


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """Open a reader of the open dictionary, or skip the test without it."""
    shared = shared_folder()
    if shared is None:
        pytest.skip("no open data: set EHRR1_SHARED to a folder with data/concepts")
    dictionary = shared / "data" / "concepts" / "concepts.tsv.gz"
    return open_reader(open_source(open_concepts(dictionary, tmp_path_factory.mktemp("cache"))))


@pytest.mark.parametrize("half", ["develop", "held out"])
def test_what_is_evidence_is_right_and_most_is_found(reader: Reader, half: str):
    found = score(reader, half)
    assert found.marked > 100
    assert found.precision >= 0.97, found.faults
    assert found.recall >= 0.85, found.faults


def test_the_gold_set_is_marked_as_it_says():
    halves = [list(snippets(half)) for half in ("develop", "held out")]
    assert [len(half) for half in halves] == [20, 20]
    marked = Counter(one.status for half in halves for snippet in half for one in snippet.mentions)
    assert marked.keys() == STATUSES
    assert marked.total() - marked["other"] == TOTAL


def test_every_abbreviation_has_a_source_and_a_concept():
    shared = shared_folder()
    if shared is None:
        pytest.skip("no open data: set EHRR1_SHARED to a folder with data/concepts")
    from ehrr1.graph.text.dictionary import read_dictionary
    from ehrr1.graph.text.text_terms import choose

    chosen = choose(read_dictionary(shared / "data" / "concepts" / "concepts.tsv.gz"))
    terms = {term.lower() for term in chosen["term"]}
    rows = table("abbreviations")
    assert all(source for _, _, source in rows)
    assert [short for short, _, _ in rows if short.lower() not in terms] == []
