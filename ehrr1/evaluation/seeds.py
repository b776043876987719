"""Scores of several seeds as one result: their mean, with an interval over seeds and patients."""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrr1.evaluation.aggregate import Metrics, difference, flat, on_common, pairs
from ehrr1.evaluation.bootstrap import Resamples
from ehrr1.evaluation.scores import Replicates, score

Floats = NDArray[np.float64]


def seed_metrics(
    groups: Mapping[str, Sequence[Mapping[str, pl.DataFrame]]],
    tasks: Sequence[str],
    replicates: int,
    seed: int,
) -> Metrics:
    """Return the macro scores of runs that differ in their seed only, and their differences.

    `groups` has, by label, the scored predictions of each run by result. Names:
    `seeds/<result>@<label>/<metric>/macro` and `seeds/<a>-<b>@<label>/...`, which pairs the results
    of each seed; `seeds/<result>@<label>-<result>@<other>/...` compares two groups on the same
    patients, with seeds drawn independently. Each has `/low` and `/high`.
    """
    if not groups:
        return {}
    patients = pl.concat(
        [rows["subject_id"] for runs in groups.values() for run in runs for rows in run.values()]
    )
    resamples = Resamples.draw(patients, replicates, seed)
    found: Metrics = {}
    means: dict[str, Replicates] = {}
    for label, runs in groups.items():
        draws = draw_seeds(len(runs), replicates, seed, label)
        shared = [name for name in runs[0] if all(name in run for run in runs)]
        scores = [{n: score(run[n], resamples, tasks) for n in shared} for run in runs]
        for name in shared:
            means[f"{name}@{label}"] = mean_over([_macro(one[name]) for one in scores], draws)
        for first, second in pairs(shared):
            gaps = [
                difference(
                    on_common(first, second, run, own, resamples, tasks),
                    on_common(second, first, run, own, resamples, tasks),
                )
                for run, own in zip(runs, scores, strict=True)
            ]
            name = f"seeds/{first}-{second}@{label}"
            found |= {f"{name}/{k}": v for k, v in flat(mean_over(gaps, draws), -1.0).items()}
    for name, values in means.items():
        found |= {f"seeds/{name}/{k}": v for k, v in flat(values).items()}
    for first, second in _between(list(means)):
        gap = flat(difference(means[first], means[second]), -1.0)
        found |= {f"seeds/{first}-{second}/{k}": v for k, v in gap.items()}
    return found


def draw_seeds(runs: int, replicates: int, seed: int, label: str) -> Floats:
    """Return the weight of each run in each replicate, [1 + replicates, runs]; row 0 is 1 / runs.

    Runs are drawn with replacement. With few of them the variance of their mean comes out
    (runs - 1) / runs too small, so that deviations from equal weights are scaled to mend it.
    """
    generator = np.random.default_rng([seed, *label.encode()])
    drawn = generator.multinomial(runs, np.full(runs, 1 / runs), size=replicates) / runs
    scale = np.sqrt(runs / (runs - 1)) if runs > 1 else 1.0
    weights = 1 / runs + scale * (drawn - 1 / runs)
    return np.concatenate([np.full((1, runs), 1 / runs), weights])


def mean_over(scores: Sequence[Replicates], draws: Floats) -> Replicates:
    """Return the mean of each score over runs, drawn with the weights `draws`."""
    shared = [name for name in scores[0] if all(name in one for one in scores)]
    return {
        name: (np.stack([one[name] for one in scores], axis=1) * draws).sum(axis=1)
        for name in shared
    }


def _macro(scores: Replicates) -> Replicates:
    return {name: values for name, values in scores.items() if name.endswith("/macro")}


def _between(names: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs of the same result of two groups, the later one first."""
    split = [name.rpartition("@") for name in names]
    return [
        (names[later], names[earlier])
        for later, (result, _, label) in enumerate(split)
        for earlier, (theirs, _, other) in enumerate(split[:later])
        if result == theirs and label != other
    ]
