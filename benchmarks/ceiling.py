"""Measure what the hidden state of the synthetic hospital would score: the ceiling of its tasks.

python -m benchmarks.ceiling outputs/demo/prepare

The baselines of evaluation are fitted to three views of each sample: the record as it was known,
the hidden state of the visit (problem, conditions, levels, time since it began), and both. Nobody
can know the hidden state; a model that reads the record is between the first and the last view.
`best` is the highest score of a task in any view. It is chosen on the test samples, and hence a
little too high.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
from sklearn.metrics import roc_auc_score

from ehrr1.evaluation.baselines.bag_table import Bags, BagTable
from ehrr1.evaluation.baselines.bags import of_kind
from ehrr1.evaluation.baselines.decisions import Frequency, decision_rows, linear, neighbours
from ehrr1.evaluation.baselines.features import Bag, bag_of_events
from ehrr1.evaluation.baselines.risk import boosting, logistic, risk_rows
from ehrr1.evaluation.predictions import frame
from ehrr1.progress import track
from ehrr1.scoring.sets import set_scores
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.tasks.selection import by_context, select

VIEWS = ("record", "hidden", "both")
MAX_FEATURES = 400
Parts = tuple[list[Sample], list[Sample], list[Sample]]


def hidden_bags(prepared: Prepared, samples: Sequence[Sample]) -> dict[str, Bag]:
    """Return the hidden state of each sample's visit by sample_id, as features."""
    truth = pl.read_parquet(prepared.folder / "hospital" / "synthetic" / "truth.parquet")
    asked = pl.DataFrame(
        {
            "sample_id": [one.sample_id for one in samples],
            "subject_id": [one.subject_id for one in samples],
            "time": [one.prediction_time for one in samples],
        }
    )
    found = asked.sort("time").join_asof(
        truth.sort("start"), left_on="time", right_on="start", by="subject_id"
    )
    return {row["sample_id"]: _hidden(row) for row in found.iter_rows(named=True)}


def _hidden(row: dict[str, Any]) -> Bag:
    if row["start"] is None:  # asked before the first visit
        return Bag()
    named = {name for name, value in row.items() if name.startswith("condition_") and value}
    counts = dict.fromkeys(sorted(named | {f"problem={row['problem']}"}), 1.0)
    numbers = {name: row[name] for name in row if name.startswith("latent_")}
    hours = (row["time"] - row["start"]).total_seconds() / 3600
    return Bag(counts, numbers | {"hours": hours, "hour of the day": row["time"].hour})


def view_bags(prepared: Prepared, samples: Sequence[Sample]) -> dict[str, Bags]:
    """Return the bags of each view."""
    hidden = hidden_bags(prepared, samples)
    views = {name: Bags(BagTable(), {}) for name in VIEWS}
    groups = by_context(samples).values()
    for group in track(groups, "reading contexts", len(groups)):
        record = bag_of_events(prepared.context(group[0]))
        views["record"].add(record, [one.sample_id for one in group])
        for one in group:
            state = hidden[one.sample_id]
            both = Bag(record.counts | state.counts, record.numbers | state.numbers)
            views["hidden"].add(state, [one.sample_id])
            views["both"].add(both, [one.sample_id])
    return views


def decision_scores(parts: Parts, views: dict[str, Bags]) -> pl.DataFrame:
    """Return the mean F1 of each task and baseline."""
    train, validation, test = (of_kind(part, "decision") for part in parts)
    tables = [frame("frequency", Frequency(train).predict(test))]
    for view, bags in views.items():
        for name, ranking in (("linear", linear), ("knn", neighbours)):
            rows = decision_rows(ranking, train, validation, test, bags, MAX_FEATURES)
            tables.append(frame(f"{name} {view}", rows))
    found = pl.concat(tables).select("model", "task", "prediction", "target")
    scored = [
        {"model": model, "task": task, "score": set_scores(said.split("\n"), true.split("\n")).f1}
        for model, task, said, true in found.iter_rows()
    ]
    return pl.DataFrame(scored).group_by("model", "task").agg(pl.col("score").mean())


def risk_scores(parts: Parts, views: dict[str, Bags]) -> pl.DataFrame:
    """Return the AUROC of each task and baseline; tasks with one outcome only are left out."""
    train, validation, test = (of_kind(part, "risk") for part in parts)
    scored = []
    for view, bags in views.items():
        for name, learner in (("logistic", logistic), ("boosting", boosting)):
            rows = risk_rows(learner, train, validation, test, bags, MAX_FEATURES, 0)
            for (task,), some in frame(f"{name} {view}", rows).group_by("task"):
                yes = some["target"] == "yes"
                if yes.n_unique() == 2:
                    score = roc_auc_score(yes, some["probability"])
                    scored.append({"model": f"{name} {view}", "task": task, "score": score})
    return pl.DataFrame(scored)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("prepare", type=Path, help="a finished stage=prepare of data=synthetic")
    parser.add_argument("--samples", type=int, default=1000, help="training samples per task")
    parser.add_argument("--test", type=int, default=200, help="test samples per task")
    given = parser.parse_args()
    prepared = Prepared(given.prepare)
    train, validation, test = (
        prepared.as_samples(select(prepared.scan(split), number, 0))
        for split, number in (
            ("train", given.samples),
            ("validation", given.samples // 4),
            ("test", given.test),
        )
    )
    parts = (train, validation, test)
    views = view_bags(prepared, [*train, *validation, *test])
    for title, scores in (
        ("AUROC", risk_scores(parts, views)),
        ("F1", decision_scores(parts, views)),
    ):
        table = scores.pivot("model", index="task", values="score").sort("task")
        table = table.with_columns(best=pl.max_horizontal(pl.exclude("task")))
        means = table.select(pl.lit("mean").alias("task"), pl.exclude("task").mean())
        table = pl.concat([table, means.select(table.columns)])
        with pl.Config(tbl_rows=40, tbl_cols=12, float_precision=3, tbl_width_chars=160):
            print(title, table)


if __name__ == "__main__":
    main()
