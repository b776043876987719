"""Fit and apply the trained baselines, on the same contexts and splits as a language model."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import polars as pl

from ehrr1.evaluation.baselines.contexts import PromptReader, View, read_contexts
from ehrr1.evaluation.baselines.decisions import Frequency, decision_rows, linear, neighbours
from ehrr1.evaluation.baselines.risk import boosting, logistic, risk_rows
from ehrr1.evaluation.phases import Phases
from ehrr1.evaluation.predictions import SCHEMA, frame
from ehrr1.progress import in_processes
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.samples import Prepared, Sample

MANY = 10_000
"""Number of training samples from which each view has a process of its own."""


class Parts(NamedTuple):
    """Samples to train on, to choose hyper-parameters on, and to predict."""

    train: Sequence[Sample]
    validation: Sequence[Sample]
    asked: Sequence[Sample]


def learn_baselines(
    prepared: Prepared,
    parts: Parts,
    reader: PromptReader | None,
    max_features: int,
    seed: int,
    phases: Phases,
) -> pl.DataFrame:
    """Return the predictions of each baseline as rows of `SCHEMA`.

    Frequency, copy-forward, nearest neighbours and the linear model answer decision tasks; logistic
    regression and boosting answer risk tasks. Models whose names end in `_cut` read only the events
    that the prompts of `reader` show; without a `reader` there are none. The table is empty if
    there are no training samples. `phases` takes the seconds.
    """
    if not parts.train:
        return pl.DataFrame(schema=SCHEMA)
    decisions = Frequency(of_kind(parts.train, "decision"))
    frequency = decisions.predict(of_kind(parts.asked, "decision"))
    with phases.of("baselines/contexts"):
        views = read_contexts([sample for part in parts for sample in part], prepared, reader)
    work = partial(view_rows, parts, max_features, seed)
    workers = len(views) if len(parts.train) >= MANY else 1
    with phases.of("baselines/fits"):
        found = list(in_processes(work, list(views.items()), "baselines: fits", workers))
    return pl.concat([frame("frequency", frequency), *found])


def view_rows(parts: Parts, max_features: int, seed: int, view: tuple[str, View]) -> pl.DataFrame:
    """Return the predictions of the baselines on one view, given with the suffix of their names."""
    suffix, seen = view
    decisions, risks = ([of_kind(part, kind) for part in parts] for kind in ("decision", "risk"))
    copied = Frequency(decisions[0]).predict(decisions[2], seen.repeated)
    found = [frame("copy" + suffix, copied)]
    for name, ranking in (("knn", neighbours), ("linear", linear)):
        rows = decision_rows(ranking, *decisions, seen.bags, max_features)
        found.append(frame(name + suffix, rows))
    for name, learner in (("logistic", logistic), ("boosting", boosting)):
        rows = risk_rows(learner, *risks, seen.bags, max_features, seed)
        found.append(frame(name + suffix, rows))
    return pl.concat(found)


def of_kind(samples: Sequence[Sample], kind: str) -> list[Sample]:
    """Return the samples whose task is of `kind`: "decision" or "risk"."""
    return [sample for sample in samples if ALL_TASKS[sample.task].kind == kind]
