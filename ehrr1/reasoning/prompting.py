"""Build the prompts by which a language model writes chains.

A prompt consists of guidelines, record, question and evidence. The texts are in
`prompts/<name>.v<number>.md`, in three parts: the guidelines (the system text, which is the same
for every sample so that it can be cached, with one worked example), `=== ask` and `=== evidence`.
A changed text gets a new number, by which the ledger identifies the prompt of each draft; the files
of earlier numbers stay, so that the drafts of old ledgers can be traced to their prompts. Every
language model gets the same prompts.
"""

import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from string import Template

import networkx as nx

from ehrr1.graph.evidence import EVIDENCE, cited_as, latest_time, strength
from ehrr1.graph.paths import path_nodes
from ehrr1.prompts.messages import THINK_CLOSE, answer_text, broken, mended
from ehrr1.reasoning.chain import BAR
from ehrr1.records.events import Event
from ehrr1.records.markdown import event_markdown
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.context import preamble_length
from ehrr1.tasks.samples import Sample

DECISION, PROSE, RISK = "decision.v2", "prose.v2", "risk.v2"
VERSIONS = frozenset({DECISION, PROSE, RISK})

CHARS_PER_TOKEN = 2.5
"""Estimated characters per token of a record.

Records consist of names and numbers: 2.5 characters per token on the MIMIC-IV demo with Qwen3's
tokenizer (English prose: 4).
"""


OVERHEAD = 64
"""Maximum number of tokens that an endpoint or a chat template adds to the texts of a prompt."""

EVIDENCE_SHARE = 1 / 3
"""Maximum share of a prompt used by evidence; the weakest evidence beyond it is left out."""


@dataclass(frozen=True, slots=True)
class Limit:
    """A maximum length of a prompt, in the unit of `size`."""

    size: Callable[[str], int]
    most: int


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request.

    system: the same for all samples of a version. record: the same for all drafts of a sample.
    question: the rest. cut: number of the oldest events left out of the record.
    """

    version: str
    system: str
    record: str
    question: str
    cut: int = 0

    @property
    def hash(self) -> str:
        """Return a hash of the version and the texts."""
        parts = "\0".join((self.version, self.system, self.record, self.question))
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    @property
    def chars(self) -> int:
        """Return the number of characters of all texts."""
        return len(self.system) + len(self.record) + len(self.question)

    @property
    def estimated_tokens(self) -> int:
        """Return the estimated number of tokens."""
        return round(self.chars / CHARS_PER_TOKEN)

    @property
    def max_tokens(self) -> int:
        """Return an upper bound of the number of tokens: one per UTF-8 byte, and `OVERHEAD`."""
        texts = (self.system, self.record, self.question)
        return sum(len(broken(text).encode()) for text in texts) + OVERHEAD

    def messages(self) -> list[dict[str, str]]:
        """Return the prompt as a chat of two messages, for local models."""
        return [
            {"role": "system", "content": self.system},
            {"role": "user", "content": f"{self.record}\n\n{self.question}"},
        ]


def draft_text(written: str) -> str:
    """Return the draft in a model's output, without the model's own thinking before it."""
    return mended(written.rpartition(THINK_CLOSE)[2].strip())


Prompts = Callable[[Collection[str]], Iterator[tuple[str, Prompt]]]
"""A function that yields (sample_id, prompt) for the given samples.

Prompts are generated one at a time, because a million of them would not fit into memory, and are
built again for repeated requests.
"""


def version_for(task: str, sections: bool) -> str:
    """Return the version of the prompt for a task; risk tasks always argue both cases."""
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
    """Return the prompt of one sample, within each of `limits` unless the preamble alone is longer.

    The prompt contains the answer for decision tasks only: the rationale for each outcome of a risk
    task must not depend on the actual outcome.
    """
    version = version_for(sample.task, sections)
    system, ask, evidence = _parts(version)
    lines = _fitting_lines(graph_lines(graph), limits) if show_graph else []
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


def _fitting_lines(lines: Sequence[str], limits: Sequence[Limit]) -> list[str]:
    """Return the leading lines that take at most EVIDENCE_SHARE of each limit."""
    rooms = [limit.most * EVIDENCE_SHARE for limit in limits]
    kept = []
    for line in lines:
        sizes = [limit.size(f"{line}\n") for limit in limits]
        rooms = [room - size for room, size in zip(rooms, sizes, strict=True)]
        if min(rooms, default=0) < 0:
            break
        kept.append(line)
    return kept


def fitting_record(context: Sequence[Event], limits: Sequence[Limit]) -> tuple[str, int]:
    """Return the record as Markdown within `limits`, and the number of events left out.

    The oldest events of the window are left out first; the preamble (demographics, earlier stays,
    admission) is always kept.
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


def graph_lines(graph: nx.DiGraph) -> list[str]:
    """Return the evidence as text, one entry per concept, strongest concepts first.

    Strengths (`evidence.strength`) are summed over the answers, as in the template.

        Glucose | Labotary Test Events | 2180-07-23 06:10
        -> Insulin (12 samples; 8.3 times; Glucose - linked - Blood Glucose - may_treat - Insulin)
    """
    weights: dict[str, float] = {}
    told: dict[str, list[str]] = {}
    for node, answer, edge in graph.edges(data=True):
        if edge["kind"] not in EVIDENCE:
            continue
        facts = [f"{edge['support']} samples", f"{edge['lift']:.1f} times"]
        if "hops" in edge:
            facts.append(_told(graph, path_nodes(graph, node, answer)))
        told.setdefault(node, [_citation(graph, node)])
        told[node].append(f"-> {graph.nodes[answer]['label']} ({'; '.join(facts)})")
        weights[node] = weights.get(node, 0) + strength(edge)
    ordered = sorted(told, key=lambda node: (-weights[node], node))
    return ["\n".join(told[node]) for node in ordered]


def _told(graph: nx.DiGraph, path: Sequence[str]) -> str:
    """Return a path as text: the labels of its nodes with the relations between them."""
    words = [graph.nodes[path[0]]["label"]]
    for one, other in pairwise(path):
        edge = graph.edges[one, other]
        relation = edge["relation"] + " (reversed)" * bool(edge.get("inverse"))
        words += [relation, graph.nodes[other]["label"]]
    return " - ".join(words)


def _citation(graph: nx.DiGraph, node: str) -> str:
    """Return a concept with its latest event, as a chain cites it."""
    time = latest_time(graph, node)
    return BAR.join((*cited_as(graph, node), f"{time:%Y-%m-%d %H:%M}" if time else "None"))


@cache
def _parts(version: str) -> tuple[str, str, str]:
    """Return the guidelines, question and evidence of a prompt file."""
    text = (files("ehrr1.reasoning") / "prompts" / f"{version}.md").read_text(encoding="utf-8")
    system, rest = text.split("\n=== ask\n")
    ask, evidence = rest.split("\n=== evidence\n")
    return system.strip(), ask.strip(), evidence.rstrip()
