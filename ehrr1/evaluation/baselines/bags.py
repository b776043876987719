"""Fit and apply the trained baselines, on the same contexts and splits as a language model."""

from collections.abc import Sequence

import polars as pl

from ehrr1.evaluation.baselines.learners import Bag, Boosting, Frequency, Logistic, bag_of_items
from ehrr1.evaluation.predictions import SCHEMA, frame
from ehrr1.progress import track
from ehrr1.prompts.trees import PromptBuilder, Question
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.context import preamble_length
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.tasks.selection import by_context


def learn_baselines(
    prepared: Prepared,
    train: Sequence[Sample],
    samples: Sequence[Sample],
    prompt_builder: PromptBuilder | None,
    max_features: int,
    seed: int,
) -> pl.DataFrame:
    """Return the predictions of each baseline on `samples`, fitted on `train`, as rows of `SCHEMA`.

    The frequency baseline answers decision tasks, logistic regression and boosting answer risk
    tasks. Models whose names end in `_cut` read only the events that fit the token limit of
    `prompt_builder`, as the language model does; without a `prompt_builder` there are none. The
    table is empty if `train` is empty.
    """
    if not train:
        return pl.DataFrame(schema=SCHEMA)
    frequency = Frequency(of_kind(train, "decision")).predict(of_kind(samples, "decision"))
    found = [frame("frequency", frequency)]
    train, samples = of_kind(train, "risk"), of_kind(samples, "risk")
    whole, cut = bags_of([*train, *samples], prepared, prompt_builder)
    for suffix, bags in ({"": whole} | ({"_cut": cut} if prompt_builder else {})).items():
        for name, model in (
            ("logistic", Logistic(max_features, seed=seed)),
            ("boosting", Boosting(max_features, seed=seed)),
        ):
            model.fit(train, bags)
            found.append(frame(name + suffix, model.predict(samples, bags)))
    return pl.concat(found)


def bags_of(
    samples: Sequence[Sample], prepared: Prepared, prompt_builder: PromptBuilder | None
) -> tuple[dict[str, Bag], dict[str, Bag]]:
    """Return the bag of items of each context, by context_id: of all events, and of the kept ones.

    The kept events are those that fit the token limit of `prompt_builder`; without one, both bags
    are the same.
    """
    whole, cut = {}, {}
    groups = by_context(samples)
    for context, group in track(groups.items(), "baselines: contexts", len(groups)):
        events = prepared.context(group[0])
        whole[context] = cut[context] = bag_of_items(events)
        if prompt_builder is not None:
            fixed = preamble_length(events)
            question = Question(group[0].sample_id, group[0].task, think=False)
            if lost := prompt_builder.tree(events, fixed, [question]).cut_events:
                cut[context] = bag_of_items([*events[:fixed], *events[fixed + lost :]])
    return whole, cut


def of_kind(samples: Sequence[Sample], kind: str) -> list[Sample]:
    """Return the samples whose task is of `kind`: "decision" or "risk"."""
    return [sample for sample in samples if ALL_TASKS[sample.task].kind == kind]
