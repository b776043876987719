"""Write chains from a template, without a model or network.

A writer is a function (sample, context, graph) -> drafts. This one composes the three sections from
the evidence graph. Its chains are short and regular, so that a small model can learn to write them,
and they omit every answer that the graph does not support. On a yes/no question it cites the
evidence for each outcome.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Literal, NamedTuple

import networkx as nx

from ehrr1.graph.concepts import ROUTINE, TOGETHER
from ehrr1.graph.evidence import (
    answers,
    cited_as,
    latest_time,
    latest_value,
    likelihood_ratio,
    strength,
)
from ehrr1.graph.reasons import EVERYBODY
from ehrr1.graph.states import NOT_DONE
from ehrr1.prompts.messages import CASES
from ehrr1.reasoning.argument import Step, argue, weigh, weighed
from ehrr1.reasoning.chain import (
    AGAIN,
    ALL_EVIDENCE,
    ARROW,
    BAR,
    NOTHING,
    SECTIONS,
    Citation,
    written_time,
)
from ehrr1.reasoning.path_lines import path_lines
from ehrr1.records.events import Event
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.samples import Sample


class Draft(NamedTuple):
    """A written chain and its cost in model tokens (0 for the template)."""

    chain: str
    tokens_in: int
    tokens_out: int


Style = Literal["compact", "prose"]
Reasons = Literal["all", "weighed"]

Writer = Callable[[Sample, Sequence[Event], nx.DiGraph], list[Draft]]


def write_template(
    sample: Sample,
    context: Sequence[Event],
    graph: nx.DiGraph,
    max_evidence: int,
    style: Style = "compact",
    of: Reasons = "all",
) -> list[Draft]:
    """Return one draft from the reasons in the graph, or none if it has none.

    At most `max_evidence` items are cited, in order of time, each with its latest event. A line of
    reasoning is made of cells (`compact`) or is a sentence (`prose`). Citations of `prose` have the
    value of the row, where it has one.

        Glucose | Labotary Test Events | 06:10       Glucose: 140 | Labotary Test Events | 06:10
        Glucose | high | -> | Insulin                Glucose is high, which calls for Insulin.
        Again | -> | Heparin | Senna                 Heparin and Senna: done before, due again.
        All patients | routine | -> | Chem-7         Chem-7: routine for all patients.
        Chem-7 | together | -> | Phosphate           Chem-7 comes with Phosphate.
        All evidence | -> | Chem-7 | Insulin         All evidence together: Chem-7 and Insulin.

    `compact` writes the final results as one line of cells. A small model that writes them in the
    form of the answer, an item on each line, can mistake one for the other and close the think
    block twice.

    If the graph has candidates, the lines name all of them, and only the final results depend on
    the answer; else the lines name the answers only. With reasons `of` "weighed" there is only the
    line of all evidence, where the graph has weighed it. Paths through the knowledge base follow
    the line whose answers they lead to. On a yes/no question the limit applies to each outcome, and
    no draft is written unless both have evidence.
    """
    if TASKS[sample.task].kind == "risk":
        return _write_cases(sample, graph, max_evidence, style)
    if of == "weighed" and "likely" in graph.graph:
        steps = [weighed(graph)]
    else:
        steps = (weigh if "candidates" in graph.graph else argue)(graph, max_evidence)
    if not steps:
        return []
    answer = answers(graph).keys()
    nodes = dict.fromkeys(node for step in steps for node in step.nodes)
    cited = {
        node: latest_time(graph, node) for node in nodes if graph.nodes[node]["kind"] == "concept"
    }
    in_time = sorted(cited, key=lambda node: (cited[node] or datetime.min, node))
    lines = [SECTIONS[0]]
    # two concepts of one row, its item and its class, are cited by one line
    lines += dict.fromkeys(BAR.join(_citation(graph, node, sample, style)) for node in in_time)
    lines += [SECTIONS[1]]
    for step in steps:
        lines.append(_line(graph, step, style))
        if step.kind == "evidence":
            derived = [item for item in step.answers if item in answer]
            lines += path_lines(graph, step.nodes[0], derived, context)
    lines += [SECTIONS[2]]
    results = sorted({item for step in steps for item in step.answers} & answer) or [NOTHING]
    lines += [BAR.join(results)] if style == "compact" else results
    return [Draft("\n".join(lines), 0, 0)]


def _line(graph: nx.DiGraph, step: Step, style: Style) -> str:
    """Return a line of reasoning: the reason, its state or kind, and the answers."""
    if style == "prose":
        return _sentence(graph, step)
    if step.kind == "again":
        reason = [AGAIN]
    elif step.kind == "weighed":
        reason = [ALL_EVIDENCE]
    elif step.kind == "evidence":
        reason = [cited_as(graph, step.nodes[0])[0], *_state(graph, step.nodes[0])]
    else:
        reason = [graph.nodes[step.nodes[0]]["label"], step.kind]
    return BAR.join([*reason, ARROW, *step.answers])


def _sentence(graph: nx.DiGraph, step: Step) -> str:
    """Return a line of reasoning as a sentence."""
    items = _listed(step.answers)
    if step.kind == "again":
        return f"{items}: done before, due again."
    if step.kind == "weighed":
        return f"{ALL_EVIDENCE} together: {items}."
    node = step.nodes[0]
    name = graph.nodes[node]["label"]
    if step.kind == "together":
        return f"{name} comes with {items}."
    if step.kind == "routine":
        whom = f"in the {name}" if graph.nodes[node]["kind"] == "concept" else "for all patients"
        return f"{items}: routine {whom}."
    return f"{_stated(graph, node)}, which calls for {items}."


def _stated(graph: nx.DiGraph, node: str) -> str:
    """Return a concept with its state: "Glucose is high"."""
    return f"{cited_as(graph, node)[0]} {SAID[''.join(_state(graph, node))]}"


SAID = {
    "": "is on record",
    **{
        state: f"is {state}" for state in ("high", "low", "normal", "abnormal", "rising", "falling")
    },
    **{state: f"was {state}" for state in ("given", "stopped", "repeated")},
    **{state: f"was {state}" for state in NOT_DONE},
    "once": "was done once",
}
"""How a sentence says the state of a concept (`graph.states`)."""


def compact_words() -> list[str]:
    """Return the words of compact lines as they stand there, for a tokenizer to learn."""
    words = (AGAIN, ALL_EVIDENCE, EVERYBODY, ROUTINE, TOGETHER, *filter(None, SAID))
    return [f"{word}{BAR}{ARROW}{BAR}" for word in words]


def _listed(items: Sequence[str]) -> str:
    """Return "A, B and C"."""
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))


def _write_cases(sample: Sample, graph: nx.DiGraph, max_evidence: int, style: Style) -> list[Draft]:
    """Return a draft that cites the strongest evidence for yes and then for no.

    The evidence of each case is in order of time. `prose` adds how much each piece weighs, the
    heaviest first:

        Lactate is rising: strong evidence.
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
        lines += [BAR.join(_citation(graph, node, sample, style)) for _, node in cited]
        if style == "prose":
            ratios = {node: likelihood_ratio(edge) for node, edge in strongest[:max_evidence]}
            for node in sorted(ratios, key=lambda node: (-ratios[node], node)):
                weight = next(word for least, word in WEIGHTS if ratios[node] >= least)
                lines.append(f"{_stated(graph, node)}: {weight} evidence.")
    return [Draft("\n".join(lines), 0, 0)]


WEIGHTS = ((10.0, "strong"), (5.0, "moderate"), (2.0, "weak"), (0.0, "slight"))
"""Least likelihood ratio -> how a case calls evidence of such weight.

The bounds are those of the Users' Guides to the Medical Literature (Jaeschke et al., JAMA 1994).
"""


def _citation(graph: nx.DiGraph, node: str, sample: Sample, style: Style) -> Citation:
    name, heading = cited_as(graph, node)
    value = latest_value(graph, node) if style == "prose" else ""
    shown = f"{name}: {value}" if value else name
    return Citation(shown, heading, written_time(latest_time(graph, node), sample.prediction_time))


def _state(graph: nx.DiGraph, node: str) -> list[str]:
    """Return the state of a concept as a list of one cell, empty if it has none."""
    state = graph.nodes[node].get("state", "")
    return [state] if state else []
