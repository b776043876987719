"""The baselines that learn, on the same contexts and splits as a language model."""

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
    """Fit each baseline on `train` and let it answer `samples`.

    Those named `_cut` read only the events that fit the token limit of `prompt_builder`, as the
    language model does.
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
    """Context -> what stands in it: of the whole, and of what `prompt_builder` leaves of it."""
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
    return [sample for sample in samples if ALL_TASKS[sample.task].kind == kind]
