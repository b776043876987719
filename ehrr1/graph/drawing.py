"""The work of one process of `stage=graph`: read contexts, count concepts, draw graphs."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ehrr1.graph.associations import Association, EvidenceRule, associated
from ehrr1.graph.concepts import Concept, Occurrence, Reader, event_texts, occurrences
from ehrr1.graph.cooccurrence import Cooccurrence, CooccurrenceCounter
from ehrr1.graph.evidence import evidence_graph, randomised, to_json
from ehrr1.graph.knowledge import Knowledge, PathRule
from ehrr1.graph.paths import Search, add_paths, search
from ehrr1.graph.text.mention_cache import MentionCache
from ehrr1.graph.text.mentions import TextSource
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.samples import Prepared, Sample

OUTCOMES = ("yes", "no")
"""The answers of a risk task; its graph has evidence for both and does not reveal the outcome."""

Texts = tuple[Path, TextSource]
"""The folder of the mention cache and the source with which texts are read."""

Part = Sequence[Sequence[Sample]]
"""Samples grouped by context: each inner sequence shares one context."""


@dataclass(frozen=True)
class Drawing:
    """The parameters of graph drawing, in a form that can be sent to other processes.

    rules: evidence rule of each task; empty for graphs without evidence (an ablation). texts:
    location of the mentions in free text, None if free text is not used. ids: name -> concept id.
    """

    prepared: Path
    counts: Path
    rules: dict[str, EvidenceRule]
    texts: Texts | None
    ids: dict[str, str]
    knowledge: Path | None
    path_rule: PathRule
    require_path: bool
    random_seed: int | None


def texts_of(prepared: Path, part: Part) -> set[str]:
    """Return the distinct free texts of these contexts."""
    contexts = (_prepared(prepared).context(group[0]) for group in part)
    return {text for context in contexts for event in context for text in event_texts(event)}


def count_part(
    prepared: Path, texts: Texts | None, either: bool, part: Part
) -> dict[str, Cooccurrence]:
    """Count target items with history concepts, separately for each task.

    `either` is passed to `CooccurrenceCounter`.
    """
    counters: dict[str, CooccurrenceCounter] = {}
    for group in part:
        context = _prepared(prepared).context(group[0])
        history = sorted({found.concept for found in occurrences(context, _reader(texts))})
        for sample in group:
            counters.setdefault(sample.task, CooccurrenceCounter(either)).add(
                sample.target, history
            )
    return {task: counter.result() for task, counter in counters.items()}


def draw_part(drawing: Drawing, part: Part) -> list[dict[str, Any]]:
    """Return the lines of graphs.jsonl for these samples."""
    return [line for group in part for line in _lines(drawing, group)]


def _lines(drawing: Drawing, group: Sequence[Sample]) -> list[dict[str, Any]]:
    context = _prepared(drawing.prepared).context(group[0])
    shown = list(occurrences(context, _reader(drawing.texts)))
    lines = []
    for sample in group:
        found = _evidence(drawing, sample, shown)
        graph = evidence_graph(context, shown, found, drawing.ids)
        if drawing.knowledge is not None:
            knowledge, path = _knowledge(drawing.knowledge, drawing.path_rule)
            add_paths(graph, knowledge, path, drawing.require_path)
        lines.append(
            {
                "sample_id": sample.sample_id,
                "task": sample.task,
                "prediction_time": sample.prediction_time.isoformat(),
                "graph": to_json(graph),
            }
        )
    return lines


def _evidence(
    drawing: Drawing, sample: Sample, shown: Sequence[Occurrence]
) -> dict[str, list[Association]]:
    """Return the evidence for each answer of a sample, or for each outcome of a risk task."""
    risk = TASKS[sample.task].kind == "risk"
    items = dict.fromkeys(OUTCOMES if risk else sample.target)
    if sample.task not in drawing.rules:
        return {item: [] for item in items}
    rule = drawing.rules[sample.task]
    counts = _counts(drawing.counts / f"{sample.task}.npz")
    concepts: dict[Concept, None] = dict.fromkeys(one.concept for one in shown)
    found = {item: associated(counts, item, concepts, rule) for item in items}
    if drawing.random_seed is not None:
        return randomised(found, shown, f"{drawing.random_seed}/{sample.sample_id}")
    return found


@cache
def _prepared(folder: Path) -> Prepared:
    return Prepared(folder)


@cache
def _counts(path: Path) -> Cooccurrence:
    return Cooccurrence.load(path)


@cache
def _reader(texts: Texts | None) -> Reader | None:
    return None if texts is None else MentionCache(*texts).of


@cache
def _knowledge(folder: Path, rule: PathRule) -> tuple[Knowledge, Search]:
    knowledge = Knowledge(folder)
    return knowledge, search(knowledge, rule)
