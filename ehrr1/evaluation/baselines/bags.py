"""Fit and apply the trained baselines, on the same contexts and splits as a language model."""

from collections.abc import Sequence

import polars as pl

from ehrr1.evaluation.baselines.contexts import PromptReader, read_contexts
from ehrr1.evaluation.baselines.decisions import Frequency, decision_rows, linear, neighbours
from ehrr1.evaluation.baselines.risk import boosting, logistic, risk_rows
from ehrr1.evaluation.predictions import SCHEMA, frame
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.samples import Prepared, Sample


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
    decisions = [of_kind(part, "decision") for part in (train, validation, samples)]
    risks = [of_kind(part, "risk") for part in (train, validation, samples)]
    frequency = Frequency(decisions[0])
    found = [frame("frequency", frequency.predict(decisions[2]))]
    for suffix, view in read_contexts([*train, *validation, *samples], prepared, reader).items():
        copied = frequency.predict(decisions[2], view.repeated)
        found.append(frame("copy" + suffix, copied))
        for name, ranking in (("knn", neighbours), ("linear", linear)):
            rows = decision_rows(ranking, *decisions, view.bags, max_features)
            found.append(frame(name + suffix, rows))
        for name, learner in (("logistic", logistic), ("boosting", boosting)):
            rows = risk_rows(learner, *risks, view.bags, max_features, seed)
            found.append(frame(name + suffix, rows))
    return pl.concat(found)


def of_kind(samples: Sequence[Sample], kind: str) -> list[Sample]:
    """Return the samples whose task is of `kind`: "decision" or "risk"."""
    return [sample for sample in samples if ALL_TASKS[sample.task].kind == kind]
