"""Measure the notes per second that one core reads for concepts, beside medspaCy's pipeline.

    python -m benchmarks.concepts DICTIONARY [--notes 300] [--subjects 200] [--runs 5] [--seed 0]
        [--json FILE]

DICTIONARY is a TSV file as `concepts.dictionary` names it. The notes are the synthetic hospital's:
as many discharge summaries as radiology reports. Both sides run in this process, bound to one core,
one after the other in every round; the ratio is taken round by round. The first is not counted.

- ours: `Reader.read`, from the text to the mentions, with sections;
- medspaCy: `medspacy.load()`, which has no sections, with a target rule for each of our terms.
  PyRuSH's log of every sentence is switched off. Abbreviations that ours finds in capitals only
  are left out on both sides: a target rule has no such thing.

Before that it is checked that both find the same entities: the same concept at the same place, but
for a salt right after its drug ("heparin sodium"), which ours leaves out. How often ConText's
statuses agree is counted: ours has some rules more, and its sentences end at line breaks.
Target: at least 4 times.
"""

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

import medspacy
import polars as pl
from loguru import logger
from medspacy.ner import TargetRule
from spacy.tokens import Doc, Span

from benchmarks.measure import machine, markdown, parser, report
from ehrr1.graph.text.assertion import STATUSES, Assertions, Sections
from ehrr1.graph.text.dictionary import read_dictionary
from ehrr1.graph.text.mentions import LongestMatches, Reader, blank, without_salts
from ehrr1.graph.text.text_terms import TextTerm, choose, matchers
from ehrr1.synthetic.hospital import write_hospital

TARGET = 4.0
ATTRIBUTES = {
    "NEGATED_EXISTENCE": "is_negated",
    "FAMILY": "is_family",
    "HYPOTHETICAL": "is_hypothetical",
    "HISTORICAL": "is_historical",
    "POSSIBLE_EXISTENCE": "is_uncertain",
}
"""ConText's categories in the order of `STATUSES`, and medspaCy's attribute of each."""

Entity = tuple[int, int, str]


def notes(subjects: int, count: int, seed: int) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        write_hospital(Path(folder) / "hospital", subjects, seed)
        tables = [
            Path(folder) / "hospital" / "note" / f"{n}.csv.gz" for n in ("discharge", "radiology")
        ]
        halves = [pl.read_csv(table)["text"].head(count // 2).to_list() for table in tables]
    return [text for pair in zip(*halves, strict=True) for text in pair]


def terms_of(dictionary: Path) -> list[TextTerm]:
    """The terms that are found in any case, split into words."""
    nlp = blank()
    chosen = choose(read_dictionary(dictionary)).filter(~pl.col("capitals"))
    return [
        TextTerm(concept, name, False, tuple(token.text for token in nlp.make_doc(term)))
        for term, concept, name in chosen.select("term", "concept_id", "name").iter_rows()
    ]


def ours(terms: Iterable[TextTerm]) -> Reader:
    nlp = blank()
    found, names = matchers(iter(terms))
    return Reader(nlp, LongestMatches(found), names.__getitem__, (Sections(nlp), Assertions(nlp)))


def theirs(terms: Iterable[TextTerm]) -> Any:
    logger.disable("PyRuSH")
    nlp = medspacy.load()
    rules = [TargetRule(" ".join(term.words), term.concept_id) for term in terms]
    nlp.get_pipe("medspacy_target_matcher").add(rules)
    return nlp


def their_status(span: Span) -> str:
    found = (STATUSES[kind] for kind, name in ATTRIBUTES.items() if getattr(span._, name))
    return next(found, "affirmed")


def their_entities(doc: Doc) -> dict[Entity, str]:
    spans = without_salts(list(doc.ents))
    return {(span.start_char, span.end_char, span.label_): their_status(span) for span in spans}


def our_entities(reader: Reader, text: str) -> dict[Entity, str]:
    return {(m.start, m.end, m.concept_id): m.status for m in reader.read(text)}


def compare(reader: Reader, nlp: Any, texts: Iterable[str]) -> tuple[int, Counter[tuple[str, str]]]:
    """Entities, and how often (our status, theirs) occur; SystemExit where entities differ."""
    pairs: Counter[tuple[str, str]] = Counter()
    for number, text in enumerate(texts):
        here, there = our_entities(reader, text), their_entities(nlp(text))
        if here.keys() != there.keys():
            differ = here.keys() ^ there.keys()
            raise SystemExit(f"note {number}: the entities differ: {sorted(differ)[:5]}")
        pairs.update((status, there[entity]) for entity, status in here.items())
    return pairs.total(), pairs


def seconds(read: Callable[[str], object], texts: Iterable[str]) -> float:
    begin = time.perf_counter()
    for text in texts:
        read(text)
    return time.perf_counter() - begin


def arguments() -> argparse.Namespace:
    found = parser(__doc__)
    found.add_argument("dictionary", type=Path)
    found.add_argument("--notes", type=int, default=300)
    found.add_argument("--subjects", type=int, default=200)
    found.add_argument("--seed", type=int, default=0)
    return found.parse_args()


def main() -> None:
    args = arguments()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    figures: dict[str, Any] = {"machine": machine()}
    texts = notes(args.subjects, args.notes, args.seed)
    terms = terms_of(args.dictionary)
    reader, nlp = ours(terms), theirs(terms)
    entities, pairs = compare(reader, nlp, texts)
    rounds = [(seconds(reader.read, texts), seconds(nlp, texts)) for _ in range(args.runs)]
    ratio = median(there / here for here, there in rounds)
    agree = sum(count for (here, there), count in pairs.items() if here == there) / entities
    rows = []
    for name, costs in zip(("ours", "medspacy.load()"), zip(*rounds, strict=True), strict=True):
        speeds = [len(texts) / cost for cost in costs]
        rows.append([name, f"{median(speeds):.0f}", f"{min(speeds):.0f}-{max(speeds):.0f}"])
    table = markdown(["", "notes a second", "least-most"], rows)
    differences = ", ".join(
        f"{here} / {there} {count}" for (here, there), count in pairs.most_common() if here != there
    )
    figures |= {"rounds": rounds, "ratio": ratio, "entities": entities, "statuses_agree": agree}
    report(args.json, table, figures)
    characters = sum(map(len, texts)) / len(texts)
    print(
        f"\n{len(texts)} notes of {characters:.0f} characters, {len(terms):,} terms; {entities} "
        f"entities, the same on both sides; ratio {ratio:.1f} (median of {args.runs} rounds), "
        f"target {TARGET}: {'met' if ratio >= TARGET else 'missed'}\n"
        f"statuses agree for {agree:.1%}; ours / theirs where not: {differences}"
    )


if __name__ == "__main__":
    main()
