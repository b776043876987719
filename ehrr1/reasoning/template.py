"""Write chains from a template, without a model or network.

A writer is a function (sample, context, graph) -> drafts. This one composes the three sections from
the evidence graph. Its chains are short and regular, so that a small model can learn to write them,
and they omit every answer that the graph does not support. On a yes/no question it cites the
evidence for each outcome.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import NamedTuple

import networkx as nx

from ehrr1.graph.evidence import answers, cited_as, latest_time, latest_value, strength
from ehrr1.prompts.messages import CASES
from ehrr1.reasoning.chain import ARROW, BAR, SECTIONS, Citation, written_time
from ehrr1.reasoning.path_lines import path_lines
from ehrr1.records.events import Event
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.samples import Sample


class Draft(NamedTuple):
    """A written chain and its cost in model tokens (0 for the template)."""

    chain: str
    tokens_in: int
    tokens_out: int


class ReasoningStep(NamedTuple):
    """One line of reasoning: a concept node and the answers derived from it."""

    node: str
    answers: list[str]


Writer = Callable[[Sample, Sequence[Event], nx.DiGraph], list[Draft]]


def write_template(
    sample: Sample, context: Sequence[Event], graph: nx.DiGraph, max_evidence: int
) -> list[Draft]:
    """Return one draft from the graph's evidence, or none if it has no evidence.

    At most `max_evidence` items are cited, in order of time, each with its latest event and, where
    the row has one, its value: `Glucose: 140 | Labotary Test Events | 06:10`. The line of reasoning
    names the state that is evidence: `Glucose | high | -> | Insulin`. Paths through the knowledge
    base follow the line whose answers they lead to. On a yes/no question the limit applies to each
    outcome, and no draft is written unless both have evidence.
    """
    if TASKS[sample.task].kind == "risk":
        return _write_cases(sample, graph, max_evidence)
    steps = choose_steps(graph, max_evidence)
    if not steps:
        return []
    latest = {step.node: latest_time(graph, step.node) for step in steps}
    steps.sort(key=lambda step: (latest[step.node] or datetime.min, step.node))
    citations = [_citation(graph, step.node, latest[step.node], sample) for step in steps]
    lines = [SECTIONS[0]]
    lines += [BAR.join(cited) for cited in citations]
    lines += [SECTIONS[1]]
    for step in steps:
        name = cited_as(graph, step.node)[0]
        lines.append(BAR.join([name, *_state(graph, step.node), ARROW, *step.answers]))
        lines += path_lines(graph, step.node, step.answers, context)
    lines += [SECTIONS[2]]
    lines += sorted(item for step in steps for item in step.answers)
    return [Draft("\n".join(lines), 0, 0)]


def _write_cases(sample: Sample, graph: nx.DiGraph, max_evidence: int) -> list[Draft]:
    """Return a draft that cites the strongest evidence for yes and then for no.

    The evidence of each case is in order of time.
    """
    found = answers(graph)
    lines = []
    for outcome, title in zip(("yes", "no"), CASES, strict=True):
        strongest = sorted(found[outcome], key=lambda pair: (-strength(pair[1]), pair[0]))
        nodes = [node for node, _ in strongest[:max_evidence]]
        if not nodes:
            return []
        cited = sorted((latest_time(graph, node) or datetime.min, node) for node in nodes)
        lines.append(title)
        lines += [
            BAR.join(_citation(graph, node, latest_time(graph, node), sample)) for _, node in cited
        ]
    return [Draft("\n".join(lines), 0, 0)]


def choose_steps(graph: nx.DiGraph, max_evidence: int) -> list[ReasoningStep]:
    """Choose few concepts that together support as many answers as possible (greedy set cover).

    Each round takes the concept with the largest sum of support * log(lift) over the answers not
    yet covered; ties go to the first by name. Support is a factor because lift alone favours rare
    concepts: with it, the same answer rests on the same evidence in most records, which a model can
    learn.
    """
    strengths: dict[str, dict[str, float]] = {}
    for item, evidence in answers(graph).items():
        for node, edge in evidence:
            strengths.setdefault(node, {})[item] = strength(edge)
    steps: list[ReasoningStep] = []
    while strengths and len(steps) < max_evidence:
        best = min(strengths, key=lambda node: (-sum(strengths[node].values()), node))
        taken = sorted(strengths[best])
        steps.append(ReasoningStep(best, taken))
        left = {
            node: {item: strength for item, strength in items.items() if item not in taken}
            for node, items in strengths.items()
        }
        strengths = {node: items for node, items in left.items() if items}
    return steps


def _citation(graph: nx.DiGraph, node: str, time: datetime | None, sample: Sample) -> Citation:
    name, heading = cited_as(graph, node)
    value = latest_value(graph, node)
    shown = f"{name}: {value}" if value else name
    return Citation(shown, heading, written_time(time, sample.prediction_time))


def _state(graph: nx.DiGraph, node: str) -> list[str]:
    """Return the state of a concept as a list of one cell, empty if it has none."""
    state = graph.nodes[node].get("state", "")
    return [state] if state else []
