"""How many citations of generated chains the records hold: python -m benchmarks.citations RUN [N].

RUN is the folder of a run with `prepare` and `eval` (outputs/demo). N chains of each model that
thought before its decisions are drawn from the scored answers (150 by default). Of their citations
are counted: names of items of the record, headings of its events, and whole citations (the item, in
an event of that heading, at that time).
"""

import sys
from collections import Counter
from pathlib import Path

import polars as pl

from ehrr1.reasoning.chain import parse_chain
from ehrr1.reasoning.facts import Citable
from ehrr1.scoring.answers import split_think
from ehrr1.tasks.samples import Prepared


def counted(prepared: Prepared, rows: pl.DataFrame) -> Counter[str]:
    """Count the chains of some answers, their citations, and what of these the records hold."""
    wanted = prepared.scan().filter(pl.col("sample_id").is_in(rows["sample_id"].to_list()))
    samples = {one.sample_id: one for one in prepared.as_samples(wanted.collect())}
    found: Counter[str] = Counter()
    for sample_id, completion in rows.select("sample_id", "completion").iter_rows():
        chain = parse_chain(split_think(completion)[0] or "")
        if chain is None:
            continue
        sample = samples[sample_id]
        facts = Citable(prepared.context(sample), sample.prediction_time)
        names = {item for event in facts.events for item in event.items}
        headings = {heading for heading, _ in facts.places}
        found["chains"] += 1
        for citation in chain.citations:
            found["citations"] += 1
            found["names"] += citation.name in names
            found["headings"] += citation.heading in headings
            found["whole"] += citation in facts
    return found


def main() -> None:
    """Print a row a model."""
    run, number = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 150
    answers = pl.read_parquet(run / "eval" / "predictions.parquet").filter(
        (pl.col("split") == "test") & pl.col("completion").str.contains("<think>", literal=True)
    )
    prepared = Prepared(run / "prepare")
    print("| | chains | citations | name in record | heading in record | whole in record |")
    print("|---|---|---|---|---|---|")
    for (model,), rows in answers.group_by("model", maintain_order=True):
        found = counted(prepared, rows.sample(min(number, len(rows)), seed=0))
        cells = (found[key] for key in ("chains", "citations", "names", "headings", "whole"))
        print(f"| {model} | {' | '.join(f'{cell:,}' for cell in cells)} |")


if __name__ == "__main__":
    main()
