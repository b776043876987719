"""What a language model is asked when it writes a chain: guidelines, record, question, evidence.

The texts stand in `prompts/<name>.v<number>.md`, in three parts: the guidelines (the system text,
the same for every sample, so that it can be cached), `=== ask` and `=== evidence`. A text that is
changed gets a new number: the ledger tells by it what each draft was asked.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from string import Template
from typing import Any

import networkx as nx

from ehrr1.graph.chain import BAR
from ehrr1.graph.concepts import Concept, heading
from ehrr1.prompts.messages import answer_text
from ehrr1.records.events import Event
from ehrr1.records.markdown import event_markdown
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.context import preamble_length
from ehrr1.tasks.samples import Sample

DECISION, PROSE, RISK = "decision.v1", "prose.v1", "risk.v1"
VERSIONS = frozenset({DECISION, PROSE, RISK})

CHARS_PER_TOKEN = 2.5
"""Records are names and numbers: 2.5 characters a token on the MIMIC-IV demo with Qwen3's
tokenizer (English prose: 4)."""


@dataclass(frozen=True, slots=True)
class Limit:
    """How long a prompt may be, in whatever `size` counts of a text."""

    size: Callable[[str], int]
    most: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request. `system` is the same for all samples of a version, `record` for all drafts of a
    sample; `question` is the rest. `cut`: the oldest events that were left out of the record."""

    version: str
    system: str
    record: str
    question: str
    cut: int = 0

    @property
    def hash(self) -> str:
        parts = "\0".join((self.version, self.system, self.record, self.question))
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    @property
    def chars(self) -> int:
        return len(self.system) + len(self.record) + len(self.question)

    @property
    def estimated_tokens(self) -> int:
        return round(self.chars / CHARS_PER_TOKEN)

    def messages(self) -> list[dict[str, str]]:
        """As a chat of two texts, for models on this machine."""
        return [
            {"role": "system", "content": self.system},
            {"role": "user", "content": f"{self.record}\n\n{self.question}"},
        ]


Prompts = Callable[[Collection[str]], Iterator[tuple[str, Prompt]]]
"""The prompts of these samples, (sample_id, prompt), one after the other: a million of them would
not fit into memory, and are built anew where a sample is asked again."""


def version_for(task: str, sections: bool) -> str:
    """Which text a task is asked with. Risk tasks always weigh both cases."""
    if TASKS[task].kind == "risk":
        return RISK
    return DECISION if sections else PROSE


def write_prompt(
    sample: Sample,
    context: Sequence[Event],
    graph: nx.DiGraph,
    *,
    sections: bool,
    show_graph: bool,
    limits: Sequence[Limit],
) -> Prompt:
    """The prompt of one sample, within each of `limits` unless the preamble alone is longer.

    The answer is told for decision tasks only: a rationale for each outcome of a risk task must
    not know which one came.
    """
    version = version_for(sample.task, sections)
    system, ask, evidence = _parts(version)
    lines = list(graph_lines(graph)) if show_graph else []
    told = {
        "question": sample.instruction or TASKS[sample.task].instruction,
        "evidence": Template(evidence).substitute(lines="\n".join(lines)) if lines else "",
    }
    if version != RISK:
        told["answer"] = answer_text(sample.target)
    question = Template(ask).substitute(told)
    rest = f"{system}\n\n{question}"
    rooms = [Limit(limit.size, limit.most - limit.size(rest)) for limit in limits]
    record, cut = fitting_record(context, rooms)
    return Prompt(version, system, record, question, cut)


def fitting_record(context: Sequence[Event], limits: Sequence[Limit]) -> tuple[str, int]:
    """The record as Markdown within `limits`, and how many events were left out for that.

    The oldest events of the window go first; the preamble (demographics, earlier stays, admission)
    always stays.
    """
    texts = [event_markdown(event) for event in context]
    kept = first = preamble_length(context)
    for limit in limits:
        sizes = [limit.size(f"{text}\n\n") for text in texts]
        left = sum(sizes[:kept]) + sum(sizes[first:])
        while left > limit.most and first < len(texts):
            left -= sizes[first]
            first += 1
    return "\n\n".join(texts[:kept] + texts[first:]), first - kept


def graph_lines(graph: nx.DiGraph) -> Iterator[str]:
    """The evidence in words, a line an edge, in the order of the answers.

    Glucose | Labotary Test Events | 2180-07-23 06:10 -> Insulin (12 samples; 8.3 times as often;
    Glucose - linked - Blood Glucose - may_treat (reversed) - Insulin)
    """
    known = graph.edge_subgraph(
        [(a, b) for a, b, kind in graph.edges(data="kind") if kind == "knowledge"]
    )
    for answer, data in graph.nodes(data=True):
        if data["kind"] != "answer":
            continue
        for node, _, edge in graph.in_edges(answer, data=True):
            if edge["kind"] == "knowledge":
                continue
            facts = _facts(edge)
            if path := _path(known, node, answer):
                facts.append(_told(graph, path))
            about = f" ({'; '.join(facts)})" if facts else ""
            yield f"{_citation(graph, node)} -> {data['label']}{about}"


def _facts(edge: dict[str, Any]) -> list[str]:
    facts = []
    if "support" in edge:
        facts.append(f"{edge['support']} samples")
    if "lift" in edge:
        facts.append(f"{edge['lift']:.1f} times as often")
    return facts


def _path(known: nx.DiGraph, start: str, end: str) -> list[str]:
    if start not in known or end not in known or not nx.has_path(known, start, end):
        return []
    return nx.shortest_path(known, start, end)


def _told(graph: nx.DiGraph, path: Sequence[str]) -> str:
    """A path in words: each node's label with the relation to the next between them."""
    words = [graph.nodes[path[0]]["label"]]
    for one, other in pairwise(path):
        edge = graph.edges[one, other]
        relation = edge.get("relation", "linked") + " (reversed)" * bool(edge.get("inverse"))
        words += [relation, graph.nodes[other]["label"]]
    return " - ".join(words)


def _citation(graph: nx.DiGraph, node: str) -> str:
    """A concept with its latest event, as a chain would cite it."""
    data = graph.nodes[node]
    times = [
        edge["time"]
        for _, _, edge in graph.out_edges(node, data=True)
        if edge["kind"] == "occurrence" and edge["time"]
    ]
    time = max(times).replace("T", " ")[:16] if times else "None"
    name = data.get("written", data["label"])  # free text has words of its own for a concept
    return BAR.join((name, heading(Concept(data["table"], data["label"])), time))


@cache
def _parts(version: str) -> tuple[str, str, str]:
    """Guidelines, question and evidence of a prompt file."""
    text = (files("ehrr1.graph") / "prompts" / f"{version}.md").read_text(encoding="utf-8")
    system, rest = text.split("\n=== ask\n")
    ask, evidence = rest.split("\n=== evidence\n")
    return system.strip(), ask.strip(), evidence.rstrip()
