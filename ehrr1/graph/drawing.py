"""The work of one process of `stage=graph`: read contexts, count concepts, draw graphs."""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ehrr1.files import read_json
from ehrr1.graph.associations import (
    Association,
    Contribution,
    EvidenceRule,
    Own,
    associated,
    candidates,
    contribution,
)
from ehrr1.graph.concepts import Concept, Occurrence, Reader, event_texts, occurrences
from ehrr1.graph.cooccurrence import Cooccurrence, CooccurrenceCounter
from ehrr1.graph.evidence import (
    Found,
    add_reasons,
    evidence_graph,
    mark_candidates,
    randomised,
    to_json,
)
from ehrr1.graph.knowledge import Knowledge, PathRule
from ehrr1.graph.paths import Search, add_paths, search
from ehrr1.graph.reasons import beside_record, find_reasons, likely_items
from ehrr1.graph.states import REMEMBERED
from ehrr1.graph.statistics import holds_without
from ehrr1.graph.text.mention_cache import MentionCache
from ehrr1.graph.text.mentions import TextSource
from ehrr1.graph.weighing import Rows, Weighed, joined, weighable
from ehrr1.records.events import Event
from ehrr1.records.markdown import event_markdown
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.context import preamble_length
from ehrr1.tasks.samples import Prepared, Sample

OUTCOMES = ("yes", "no")
"""The answers of a risk task; its graph has evidence for both and does not reveal the outcome."""

CONTEXTS = 256
"""Number of contexts that a process keeps."""

Texts = tuple[Path, TextSource]
"""The folder of the mention cache and the source with which texts are read."""

Contexts = Sequence[Sequence[Sample]]
"""Samples grouped by context: each inner sequence shares one context."""


class PatientSamples(NamedTuple):
    """The samples of one patient: those that are counted and those whose graphs are drawn."""

    counted: Contexts
    drawn: Contexts


Part = Sequence[PatientSamples]
"""Patients that one process reads at a time."""


class Asked(NamedTuple):
    """A sample, what its context shows, and what its patient adds to the counts of its task.

    No evidence rests on the patient's own counts.
    """

    sample: Sample
    shown: Sequence[Occurrence]
    own: Contribution | None


Counted = dict[str, list[tuple[Set[str], Set[Concept]]]]
"""The counted samples of a patient by task: answer and history of each."""


class Reading(NamedTuple):
    """The way in which contexts are read, in a form that can be sent to other processes.

    either: as by the release, without states. texts: location of the mentions in free text, None if
    free text is not used. record_chars: length in characters of the latest events that are read
    (`shown_from`); None: all.
    """

    prepared: Path
    either: bool
    texts: Texts | None
    record_chars: int | None


@dataclass(frozen=True)
class Drawing:
    """The parameters of graph drawing, in a form that can be sent to other processes.

    rules: evidence rule of each task; empty for graphs without evidence (an ablation). In the
    counts of the release (`reading.either`) a sample's own patient is not left out. ids: name ->
    concept id. min_routine: see `graph.reasons.find_reasons`; None for graphs without other
    reasons. candidates: number of likely items; 0: only the answer's reasons are drawn. weighed:
    the folder with what all concepts together make likely (`graph.weighing`); None: the items with
    the best single reason are candidates.
    """

    reading: Reading
    counts: Path
    rules: dict[str, EvidenceRule]
    ids: dict[str, str]
    knowledge: Path | None
    path_rule: PathRule
    require_path: bool
    min_routine: float | None
    candidates: int
    weighed: Path | None
    random_seed: int | None


def texts_of(prepared: Path, part: Part) -> set[str]:
    """Return the distinct free texts of these contexts."""
    groups = [group for patient in part for group in (*patient.counted, *patient.drawn)]
    contexts = (_prepared(prepared).context(group[0]) for group in groups)
    return {text for context in contexts for event in context for text in event_texts(event)}


def count_part(reading: Reading, part: Part) -> dict[str, Cooccurrence]:
    """Count target items with history concepts in each patient, separately for each task.

    With `reading.either`, samples are counted as by the release (see `CooccurrenceCounter`).
    """
    counters: dict[str, CooccurrenceCounter] = {}
    for patient in part:
        for task, samples in counted_samples(reading, patient).items():
            counter = counters.setdefault(task, CooccurrenceCounter(reading.either))
            if reading.either:
                for target, history in samples:
                    counter.add(target, history)
            else:
                counter.add_patient(samples)
    return {task: counter.result() for task, counter in counters.items()}


def counted_samples(reading: Reading, patient: PatientSamples) -> Counted:
    """Return the answer and the history of each counted sample of a patient, by task.

    Both are in the order of the record, so that the vocabulary of the counts is, too.
    """
    found: Counted = {}
    for group in patient.counted:
        shown = _read(reading, group[0])[1]
        history = dict.fromkeys(one.concept for one in shown)
        for sample in group:
            beside = beside_record(shown, sample.target) if has_reasons(reading, sample) else ()
            every = (history | dict.fromkeys(beside)).keys()
            answer = dict.fromkeys(sample.target).keys()
            found.setdefault(sample.task, []).append((answer, every))
    return found


def rows_part(reading: Reading, part: Part) -> dict[str, Rows]:
    """Return the samples of these patients with the concepts that their records show, by task.

    Those that are counted are learnt from; those that are drawn are only scored.
    """
    parts: dict[str, list[Rows]] = {}
    for patient in part:
        for group, learnt in [(group, True) for group in patient.counted] + [
            (group, False) for group in patient.drawn
        ]:
            concepts = weighable(_read(reading, group[0])[1])
            codes = np.arange(len(concepts), dtype=np.int32)
            for one in group:
                row = ([one.sample_id], [one.subject_id], [one.target], [learnt])
                parts.setdefault(one.task, []).append(Rows(*row, concepts, codes, [len(codes)]))
    return {task: joined(rows) for task, rows in parts.items()}


def has_reasons(reading: Reading, sample: Sample) -> bool:
    """Return whether a sample has reasons beside evidence (`graph.reasons`).

    Risk tasks, of whose answers one is true, have none, nor have the counts of the release.
    """
    return not reading.either and TASKS[sample.task].kind != "risk"


@lru_cache(maxsize=CONTEXTS)
def _read(reading: Reading, sample: Sample) -> tuple[Sequence[Event], Sequence[Occurrence]]:
    """Return the context of a sample and the occurrences of concepts in what is read of it.

    The last contexts are kept: a patient's are read once to be counted and once more to be drawn.
    """
    context = _prepared(reading.prepared).context(sample)
    kept = preamble_length(context)
    first = kept
    if reading.record_chars is not None:
        first = shown_from(context, kept, reading.record_chars)
    shown = [*range(kept), *range(first, len(context))]
    events = [context[number] for number in shown]
    found = occurrences(events, _reader(reading.texts), not reading.either, shown)
    return context, tuple(found)


def shown_from(context: Sequence[Event], kept: int, most: int) -> int:
    """Return the first of the latest events that fit, with the first `kept`, in `most` characters.

    A model with short prompts does not see the others, and a chain must not cite them.
    """
    room = most - sum(_size(event) for event in context[:kept])
    first = len(context)
    while first > kept and (room := room - _size(context[first - 1])) >= 0:
        first -= 1
    return first


@lru_cache(maxsize=REMEMBERED)
def _size(event: Event) -> int:
    return len(event_markdown(event)) + 2


def draw_part(drawing: Drawing, part: Part) -> list[dict[str, Any]]:
    """Return the lines of graphs.jsonl for these patients."""
    lines = []
    for patient in part:
        own: Counted = {}
        if patient.drawn and drawing.rules and not drawing.reading.either:
            own = counted_samples(drawing.reading, patient)
        added = {
            task: contribution(_counts(drawing.counts / f"{task}.npz"), samples)
            for task, samples in own.items()
        }
        for group in patient.drawn:
            lines += _lines(drawing, group, own, added)
    return lines


def _lines(
    drawing: Drawing,
    group: Sequence[Sample],
    own: Counted,
    added: Mapping[str, Contribution | None],
) -> list[dict[str, Any]]:
    """Return the lines of samples that share a context.

    `own` are the counted samples of their patient, `added` what these add to each task's counts.
    """
    context, shown = _read(drawing.reading, group[0])
    lines = []
    for sample in group:
        asked = Asked(sample, shown, added.get(sample.task))
        risk = TASKS[sample.task].kind == "risk"
        found = _evidence(drawing, asked, dict.fromkeys(OUTCOMES if risk else sample.target))
        weighed = _candidates(drawing, asked)
        others = [item for item in weighed.items if item not in found]
        likely = _evidence(drawing, asked, others)
        answers_from = None if drawing.reading.either else TASKS[sample.task].anchor_table
        graph = evidence_graph(context, shown, found, drawing.ids, answers_from, likely)
        if drawing.knowledge is not None:
            knowledge, path = _knowledge(drawing.knowledge, drawing.path_rule)
            add_paths(graph, knowledge, path, drawing.require_path)
        # a candidate that came together with an answer would give it away
        reasons = _reasons(drawing, asked, sample.target, together=True)
        reasons |= _reasons(drawing, asked, others, together=False)
        add_reasons(graph, context, shown, reasons, drawing.ids)
        if drawing.candidates:
            mark_candidates(graph, *weighed)
        lines.append(
            {
                "sample_id": sample.sample_id,
                "task": sample.task,
                "split": sample.split,
                "prediction_time": sample.prediction_time.isoformat(),
                "holding": _holding(drawing, sample, found, own.get(sample.task, ())),
                "graph": to_json(graph),
            }
        )
    return lines


def _candidates(drawing: Drawing, asked: Asked) -> Weighed:
    """Return the likeliest items by the record, as many as the drawing has, in the answer or not.

    They are the same whatever the answer is.
    """
    task = asked.sample.task
    if not drawing.candidates or task not in drawing.rules or TASKS[task].kind == "risk":
        return Weighed((), 0)
    if drawing.weighed is not None:
        known = _weighed(drawing.weighed / f"{task}.json")
        return Weighed(*known.get(asked.sample.sample_id, ((), 0)))
    found = likely_items(
        _counts(drawing.counts / f"{task}.npz"),
        asked.shown,
        TASKS[task].anchor_table,
        drawing.rules[task],
        drawing.min_routine,
        asked.own,
    )
    return Weighed(tuple(found[: drawing.candidates]), 0)


def _evidence(drawing: Drawing, asked: Asked, items: Iterable[str]) -> dict[str, list[Association]]:
    """Return the evidence for each of some items."""
    task = asked.sample.task
    if task not in drawing.rules:
        return {item: [] for item in items}
    rule, counts = drawing.rules[task], _counts(drawing.counts / f"{task}.npz")
    concepts = candidates(counts, dict.fromkeys(one.concept for one in asked.shown))
    found = {item: associated(counts, item, concepts, rule, asked.own) for item in items}
    if drawing.random_seed is not None:
        return randomised(found, asked.shown, f"{drawing.random_seed}/{asked.sample.sample_id}")
    return found


def _reasons(
    drawing: Drawing, asked: Asked, items: Sequence[str], *, together: bool
) -> dict[str, list[Association]]:
    """Return the reasons beside evidence for each of some items, if the graph has such reasons."""
    task = asked.sample.task
    wanted = task in drawing.rules and has_reasons(drawing.reading, asked.sample)
    if drawing.min_routine is None or not wanted:
        return {}
    return find_reasons(
        _counts(drawing.counts / f"{task}.npz"),
        items,
        beside_record(asked.shown, asked.sample.target if together else ()),
        {one.concept for one in asked.shown if one.concept.kind == TASKS[task].anchor_table},
        drawing.rules[task],
        drawing.min_routine,
        asked.own,
    )


def _holding(drawing: Drawing, sample: Sample, found: Found, own: Own) -> int | None:
    """Return how many pairs of a training sample's graph hold without its own patient.

    None where this is not asked: of validation samples, whose patients are not counted, of the
    counts of the release, and of graphs with random or no evidence.
    """
    real = drawing.rules and drawing.random_seed is None and not drawing.reading.either
    if sample.split != "train" or not real:
        return None
    rule, counts = drawing.rules[sample.task], _counts(drawing.counts / f"{sample.task}.npz")
    return sum(
        holds_without(counts, rule, item, one.concept, own)
        for item, evidence in found.items()
        for one in evidence
    )


@cache
def _prepared(folder: Path) -> Prepared:
    return Prepared(folder)


@cache
def _counts(path: Path) -> Cooccurrence:
    return Cooccurrence.load(path)


@cache
def _weighed(path: Path) -> dict[str, tuple[tuple[str, ...], int]]:
    return dict(read_json(path))


@cache
def _reader(texts: Texts | None) -> Reader | None:
    return None if texts is None else MentionCache(*texts).of


@cache
def _knowledge(folder: Path, rule: PathRule) -> tuple[Knowledge, Search]:
    knowledge = Knowledge(folder)
    return knowledge, search(knowledge, rule)
