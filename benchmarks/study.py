"""Show the worth of each stage: tables and learning curves of a study, for docs/results.md.

    python -m benchmarks.study OUTPUTS/synthetic_study [--picture FILE.png]

The folder is an experiment's; its variants (random_graph, no_reason, modes) are read where they are
there. Nothing is computed anew: scores are those of each `eval/metrics.json`, differences between
variants those of `compare/differences.csv` (`stage=eval compare=[...]`), curves those of each
`train.jsonl`.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import polars as pl

from benchmarks.measure import markdown
from ehrr1.config.names import ORDER
from ehrr1.evaluation.aggregate import BASELINES, CURRICULUM
from ehrr1.runs import metrics_of

SCORES = {
    "AUROC": "risk/auroc/macro",
    "AUPRC": "risk/auprc/macro",
    "Brier": "risk/brier/macro",
    "ECE": "risk/ece/macro",
    "decisions, F1": "decision/f1/macro",
}

VARIANTS = ("", "random_graph", "no_reason", "modes")
"""Folders below the experiment's; "" is the study itself."""

CURVES = {
    ("adapt", "loss"): ("",),
    ("reason", "loss"): ("", "random_graph"),
    ("rl", "reward"): ("", "random_graph", "no_reason"),
}
"""Stage and what is drawn of it -> the variants that have trained one of their own."""

WINDOW_SHARE = 0.04
"""Of the steps: curves are means over so many, or they would be all noise."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--picture", type=Path)
    given = arguments.parse_args()
    evaluations = {
        name: given.folder / name / "eval"
        for name in VARIANTS
        if (given.folder / name / "eval" / "metrics.json").exists()
    }
    for name, folder in evaluations.items():
        print(f"\n{name or 'the study'}\n")
        print(markdown(["", *SCORES, "certain", "unread"], score_rows(metrics_of(folder))))
        print(f"\n{name or 'the study'}: paired differences\n")
        print(markdown(["", "AUROC", "decisions, F1"], difference_rows(metrics_of(folder))))
    if (table := given.folder / "compare" / "differences.csv").exists():
        print("\nbetween the variants\n")
        print(markdown(["", "metric", "difference"], variant_rows(pl.read_csv(table))))
    print("\nseconds of each stage\n")
    print(markdown(["", *ORDER], list(time_rows(given.folder))))
    if given.picture:
        draw(given.folder, given.picture)


def score_rows(metrics: dict[str, Any]) -> list[list[str]]:
    """A row a result: scores with intervals, the share of probabilities that are as good as
    certain, and the number of answers that could not be read."""
    first = (*CURRICULUM, *BASELINES)
    found = {name for name in map(owner, metrics) if name}
    rows = []
    for name in sorted(found, key=lambda one: first.index(one) if one in first else -1):
        prefix = f"baseline/{name}/" if name in BASELINES else f"{name}/"
        cells = [interval(metrics, prefix + key) for key in SCORES.values()]
        certain = metrics.get(f"{prefix}saturated")
        unread = [v for k, v in metrics.items() if k.startswith(f"{prefix}parse_failures/")]
        rows.append([name, *cells, "" if certain is None else f"{certain:.0%}", f"{sum(unread):,}"])
    return rows


def owner(key: str) -> str | None:
    """Whose metric a name is: of one result, not of a pair."""
    for score in SCORES.values():
        name = key.removesuffix(f"/{score}").removeprefix("baseline/")
        if name != key and "/" not in name and "-" not in name:
            return name
    return None


def difference_rows(metrics: dict[str, Any]) -> list[list[str]]:
    pairs = dict.fromkeys(
        key.split("/")[0] for key in metrics if "-" in key.split("/")[0] and "/macro" in key
    )
    return [
        [
            pair,
            *(interval(metrics, f"{pair}/{SCORES[s]}", True) for s in ("AUROC", "decisions, F1")),
        ]
        for pair in pairs
    ]


def variant_rows(table: pl.DataFrame) -> list[list[str]]:
    wanted = table.filter(pl.col("metric").is_in([SCORES["AUROC"], SCORES["decisions, F1"]]))
    return [
        [
            f"{row['result']} - {row['minus']}",
            row["metric"],
            f"{row['difference']:+.3f} [{row['low']:.3f}, {row['high']:.3f}]",
        ]
        for row in wanted.iter_rows(named=True)
    ]


def interval(metrics: dict[str, Any], key: str, signed: bool = False) -> str:
    if key not in metrics:
        return ""
    sign = "+" if signed else ""
    return f"{metrics[key]:{sign}.3f} [{metrics[f'{key}/low']:.3f}, {metrics[f'{key}/high']:.3f}]"


def time_rows(folder: Path) -> Iterator[list[str]]:
    for name in VARIANTS:
        files = [folder / name / stage / "metrics.json" for stage in ORDER]
        cells = [f"{metrics_of(f.parent)['seconds']:,.0f}" if f.exists() else "" for f in files]
        if any(cells):
            yield [name or "the study", *cells]


def draw(folder: Path, picture: Path) -> None:
    """Learning curves, a panel a stage, means over a few steps."""
    figure, axes = plt.subplots(1, len(CURVES), figsize=(12, 3.4), layout="constrained")
    for axis, ((stage, what), variants) in zip(axes, CURVES.items(), strict=True):
        for name in variants:
            if (log := folder / name / stage / "train.jsonl").exists():
                values = [json.loads(line)[what] for line in log.read_text().splitlines()]
                steps, means = smooth(values)
                axis.plot(steps, means, label=name or "as the study has it", linewidth=1.3)
        axis.set(title=stage, xlabel="step", ylabel=what)
        if what == "loss":
            axis.set_yscale("log")
        if len(axis.lines) > 1:
            axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(picture, dpi=130)


def smooth(values: Sequence[float]) -> tuple[Any, Any]:
    width = max(1, round(len(values) * WINDOW_SHARE))
    means = np.convolve(values, np.ones(width) / width, mode="valid")
    return np.arange(len(means)) + width, means


if __name__ == "__main__":
    main()
