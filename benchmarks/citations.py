"""Count the citations of generated chains that records hold: python -m benchmarks.citations RUN.

RUN is the folder of a run with `prepare` and `eval` (outputs/demo); a number behind it is that of
the chains drawn from each model's scored answers to decisions (150). Of their citations are
counted: names of items of the record, headings of its events, and whole citations (the item, in an
event of that heading, at that time). Of their final results: those that the answer repeats.
"""

import sys
from collections import Counter
from pathlib import Path

import polars as pl

from ehrr1.reasoning.chain import parse_chain
from ehrr1.reasoning.facts import Citable
from ehrr1.scoring.answers import split_think
from ehrr1.tasks.samples import Prepared

COLUMNS = ("sample_id", "completion", "prediction")


def counted(prepared: Prepared, rows: pl.DataFrame) -> Counter[str]:
    """Count the chains of some answers, their citations, and what of these the records hold."""
    wanted = prepared.scan().filter(pl.col("sample_id").is_in(rows["sample_id"].to_list()))
    samples = {one.sample_id: one for one in prepared.as_samples(wanted.collect())}
    found: Counter[str] = Counter()
    for sample_id, completion, answer in rows.select(COLUMNS).iter_rows():
        chain = parse_chain(split_think(completion)[0] or "")
        if chain is None:
            continue
        sample = samples[sample_id]
        facts = Citable(prepared.context(sample), sample.prediction_time)
        names = {item for event in facts.events for item in event.items}
        headings = {heading for heading, _ in facts.places}
        found["chains"] += 1
        found["results"] += len(chain.results)
        found["repeated"] += len(set(chain.results) & set(answer.split("\n")))
        for citation in chain.citations:
            found["citations"] += 1
            found["names"] += citation.name in names
            found["headings"] += citation.heading in headings
            found["whole"] += citation in facts
    return found


COUNTS = {
    "chains": "chains",
    "citations": "citations",
    "names": "name in the record",
    "headings": "heading in the record",
    "whole": "item at that time in the record",
    "results": "final results",
    "repeated": "repeated by the answer",
}


def main() -> None:
    """Print a row a model."""
    run, number = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 150
    answers = pl.read_parquet(run / "eval" / "predictions.parquet").filter(
        (pl.col("split") == "test") & pl.col("completion").str.contains("<think>", literal=True)
    )
    prepared = Prepared(run / "prepare")
    print(f"| | {' | '.join(COUNTS.values())} |")
    print("|---" * (1 + len(COUNTS)) + "|")
    for (model,), rows in answers.group_by("model", maintain_order=True):
        found = counted(prepared, rows.sample(min(number, len(rows)), seed=0))
        print(f"| {model} | {' | '.join(f'{found[key]:,}' for key in COUNTS)} |")


if __name__ == "__main__":
    main()
