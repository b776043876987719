"""Read the contexts of samples as the baselines see them: whole, and as a model's prompt shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ehrr1.evaluation.baselines.bag_table import Bags, BagTable
from ehrr1.evaluation.baselines.features import bag_of_events, rows_of
from ehrr1.evaluation.prompt_mode import Chooser, PromptMode
from ehrr1.progress import track
from ehrr1.prompts.trees import PromptBuilder, Question
from ehrr1.records.events import Event
from ehrr1.records.schema import TABLES
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.context import preamble_length
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.tasks.selection import by_context

CLASSES = ("Atc Type", "Ccs Type")
"""Record keys that hold the class of a row."""


@dataclass(frozen=True)
class PromptReader:
    """The prompts of one language model, which decide the events that it reads.

    `risk` and `decision` are the modes in which the questions are asked, `heads` the tokens of the
    examples of a task (`evaluation.shots`).
    """

    prompt_builder: PromptBuilder
    risk: PromptMode
    decision: PromptMode
    candidates: Chooser | None = None
    heads: Mapping[str, list[int]] = field(default_factory=dict)

    def cut_events(self, events: Sequence[Event], group: Sequence[Sample]) -> dict[str, int]:
        """Return how many events the prompt of each sample leaves out, by sample_id.

        `group` are samples with the context `events`. They are the oldest events after the preamble
        (`preamble_length`). As in `evaluation.predict`, the risk questions on one context share a
        prompt, and each decision question has its own. If a question does not fit, all events after
        the preamble are left out.
        """
        fixed = preamble_length(events)
        found = {sample.sample_id: len(events) - fixed for sample in group}
        prompts: dict[str, list[Question]] = {}
        for sample in group:
            is_risk = ALL_TASKS[sample.task].kind == "risk"
            mode = self.risk if is_risk else self.decision
            words = mode.words(sample, self.candidates)
            question = Question(sample.sample_id, sample.task, mode.thinks, instruction=words)
            if self.prompt_builder.fits(question):
                shared = (sample.task if self.heads else "") if is_risk else sample.sample_id
                prompts.setdefault(shared, []).append(question)
        for questions in prompts.values():
            head = self.heads.get(questions[0].task)
            tree = self.prompt_builder.tree(events, fixed, questions, head=head)
            found |= {question.sample_id: tree.cut_events for question in questions}
        return found


@dataclass(frozen=True)
class View:
    """What baselines see of each sample: the bag of its context, and the last such event.

    `repeated` maps the sample_id of decision samples to the items of the last event of the kind
    that the task asks for (`last_items`).
    """

    bags: Bags
    repeated: Mapping[str, list[str]]


def read_contexts(
    samples: Sequence[Sample], prepared: Prepared, reader: PromptReader | None
) -> dict[str, View]:
    """Return the views of `samples` by the suffix of the baselines' names.

    "" is the view of whole contexts, "_cut" that of the events that `reader` shows; without a
    `reader` there is no "_cut". Each context is read once, and contexts of which equally many
    events are shown share a bag.
    """
    table = BagTable()
    suffixes = ("", "_cut") if reader else ("",)
    rows: dict[str, dict[str, int]] = {suffix: {} for suffix in suffixes}
    repeated: dict[str, dict[str, list[str]]] = {suffix: {} for suffix in suffixes}
    groups = by_context(samples)
    for group in track(groups.values(), "baselines: contexts", len(groups)):
        events = prepared.context(group[0])
        fixed = preamble_length(events)
        cuts = {"": dict.fromkeys((sample.sample_id for sample in group), 0)}
        if reader is not None:
            cuts["_cut"] = reader.cut_events(events, group)
        by_lost: dict[int, list[tuple[str, Sample]]] = {}
        for suffix, cut in cuts.items():
            for sample in group:
                by_lost.setdefault(cut[sample.sample_id], []).append((suffix, sample))
        for lost, some in by_lost.items():
            shown = [*events[:fixed], *events[fixed + lost :]]
            row = table.add(bag_of_events(shown))
            for suffix, sample in some:
                rows[suffix][sample.sample_id] = row
                if ALL_TASKS[sample.task].kind == "decision":
                    repeated[suffix][sample.sample_id] = last_items(shown, sample.task)
    return {suffix: View(Bags(table, own), repeated[suffix]) for suffix, own in rows.items()}


def last_items(events: Sequence[Event], task: str) -> list[str]:
    """Return the distinct items of the last event that could have been an answer of `task`.

    They are items, classes or the table's heading, as the task asks for. Empty if there is no such
    event.
    """
    entry = ALL_TASKS[task]
    for event in reversed(events):
        if entry.target == "heading":
            if event.table in TABLES and event.time is not None:
                return [TABLES[event.table].heading]
        elif event.table == entry.anchor_table:
            rows = [
                next((row[key] for key in CLASSES if row.get(key)), "")
                if entry.target == "class"
                else item
                for item, row in rows_of(event)[1]
            ]
            if items := list(dict.fromkeys(item for item in rows if item)):
                return items
    return []
