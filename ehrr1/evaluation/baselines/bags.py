"""Fit and apply the trained baselines, on the same contexts and splits as a language model."""

from collections.abc import Sequence
from functools import partial

import polars as pl

from ehrr1.evaluation.baselines.contexts import PromptReader, View, read_contexts
from ehrr1.evaluation.baselines.decisions import Frequency, decision_rows, linear, neighbours
from ehrr1.evaluation.baselines.risk import boosting, logistic, risk_rows
from ehrr1.evaluation.predictions import SCHEMA, frame
from ehrr1.progress import in_processes
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.samples import Prepared, Sample

MANY = 10_000
"""Number of training samples from which each view has a process of its own."""


def learn_baselines(
    prepared: Prepared,
    train: Sequence[Sample],
    validation: Sequence[Sample],
    samples: Sequence[Sample],
    reader: PromptReader | None,
    max_features: int,
    seed: int,
) -> pl.DataFrame:
    """Return the predictions of each baseline on `samples`, fitted on `train`, as rows of `SCHEMA`.

    Hyper-parameters are chosen on `validation`. Frequency, copy-forward, nearest neighbours and the
    linear model answer decision tasks; logistic regression and boosting answer risk tasks. Models
    whose names end in `_cut` read only the events that the prompts of `reader` show; without a
    `reader` there are none. The table is empty if `train` is empty.
    """
    if not train:
        return pl.DataFrame(schema=SCHEMA)
    parts = (train, validation, samples)
    frequency = Frequency(of_kind(train, "decision")).predict(of_kind(samples, "decision"))
    views = read_contexts([*train, *validation, *samples], prepared, reader)
    work = partial(view_rows, parts, max_features, seed)
    workers = len(views) if len(train) >= MANY else 1
    found = in_processes(work, list(views.items()), "baselines: fits", workers)
    return pl.concat([frame("frequency", frequency), *found])


def view_rows(
    parts: tuple[Sequence[Sample], Sequence[Sample], Sequence[Sample]],
    max_features: int,
    seed: int,
    view: tuple[str, View],
) -> pl.DataFrame:
    """Return the predictions of the baselines on one view, given with the suffix of their names.

    `parts` are the training samples, the validation samples and those that are predicted.
    """
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
