"""Read the contexts of samples as the baselines see them: whole, and as a model's prompt shows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

from ehrr1.cores import cores
from ehrr1.evaluation.baselines.bag_table import Bags, BagTable
from ehrr1.evaluation.baselines.features import Bag, bag_of_events, rows_of
from ehrr1.evaluation.prompt_mode import Chooser, PromptMode
from ehrr1.progress import in_processes
from ehrr1.prompts.trees import PromptBuilder, Question
from ehrr1.records.events import Event
from ehrr1.records.schema import TABLES
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.context import preamble_length
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.tasks.selection import by_context

CLASSES = ("Atc Type", "Ccs Type")
"""Record keys that hold the class of a row."""

CONTEXTS_AT_ONCE = 2000
"""Number of contexts that one process reads at a time."""

MOST_PROCESSES = 8
"""Maximum number of processes that read contexts; each holds the tokenizer and 0.5 GB of code."""

Group = Sequence[Sample]
"""Samples that share a context."""


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
    """The bags of samples' contexts, and the items that copy-forward repeats.

    `repeated` maps the sample_id of decision samples to the items of the last event of the kind
    that the task asks for (`last_items`).
    """

    bags: Bags = field(default_factory=lambda: Bags(BagTable(), {}))
    repeated: dict[str, list[str]] = field(default_factory=dict)

    def extend(self, other: "View") -> None:
        """Append the contexts of another view."""
        self.bags.extend(other.bags)
        self.repeated.update(other.repeated)


Views = dict[str, View]
"""Suffix of the baselines' names -> what they see: "" all events, "_cut" those of a prompt."""


def read_contexts(
    samples: Sequence[Sample], prepared: Prepared, reader: PromptReader | None
) -> Views:
    """Return the views of `samples`.

    "_cut" is the view of the events that `reader` shows; without a `reader` there is none. Each
    context is read once, and samples of which equally many events are shown share a bag. More
    contexts than `CONTEXTS_AT_ONCE` are read by several processes.
    """
    # contexts of one patient share events, whose tokens are cached
    groups = sorted(by_context(samples).values(), key=lambda group: group[0].subject_id)
    starts = range(0, len(groups), CONTEXTS_AT_ONCE)
    parts = [groups[start : start + CONTEXTS_AT_ONCE] for start in starts]
    # lists of candidates are drawn from the whole index, which every process would read again
    alone = len(parts) == 1 or (reader is not None and reader.candidates is not None)
    work: Callable[[Sequence[Group]], Views] = (
        partial(read_part, prepared, reader)
        if alone
        else partial(read_part_of, prepared.folder, reader)
    )
    whole = empty_views(reader)
    spare = max(1, cores() - 1)  # beside the process that asks the models
    workers = 1 if alone else min(MOST_PROCESSES, spare)
    for part in in_processes(work, parts, "baselines: contexts", workers):
        for suffix, view in part.items():
            whole[suffix].extend(view)
    return whole


def empty_views(reader: PromptReader | None) -> Views:
    """Return the views without contexts."""
    return {suffix: View() for suffix in (("", "_cut") if reader else ("",))}


def read_part_of(folder: Path, reader: PromptReader | None, groups: Sequence[Group]) -> Views:
    """Read the contexts of some groups, as a process that knows only the folder of the records."""
    return read_part(_prepared(folder), reader, groups)


def read_part(prepared: Prepared, reader: PromptReader | None, groups: Sequence[Group]) -> Views:
    """Read the contexts of some groups."""
    views = empty_views(reader)
    for group in groups:
        events = prepared.context(group[0])
        fixed = preamble_length(events)
        cuts = {"": dict.fromkeys((sample.sample_id for sample in group), 0)}
        if reader is not None:
            cuts["_cut"] = reader.cut_events(events, group)
        known: dict[int, Bag] = {}
        for suffix, cut in cuts.items():
            for lost in set(cut.values()):
                shown = [*events[:fixed], *events[fixed + lost :]]
                if lost not in known:
                    known[lost] = bag_of_events(shown)
                some = [sample for sample in group if cut[sample.sample_id] == lost]
                views[suffix].bags.add(known[lost], [sample.sample_id for sample in some])
                for sample in some:
                    if ALL_TASKS[sample.task].kind == "decision":
                        views[suffix].repeated[sample.sample_id] = last_items(shown, sample.task)
    return views


@cache
def _prepared(folder: Path) -> Prepared:
    return Prepared(folder)


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
