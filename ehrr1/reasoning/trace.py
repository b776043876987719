"""Trace each line of a chain to nodes and edges of the sample's evidence graph.

The chain is parsed as text, so that chains of a language model and of the template are traced
alike:

    Glucose: 140 | Labotary Test Events | 06:10      the concept, its event at that time
    Glucose | -> | Insulin                           the concept, the answer, the edge, the path
    Again | -> | Heparin                             the same, of the answer's own item
    All evidence | -> | Insulin                      the same, of all concepts
    A glucose of 140 calls for insulin.              the same, by the names in it
    Insulin                                          in the results: all that was argued for it
"""

import re
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import networkx as nx

from ehrr1.graph.concepts import TOGETHER, Concept, heading
from ehrr1.graph.evidence import ITEMS
from ehrr1.graph.paths import path_nodes
from ehrr1.prompts.messages import CASES
from ehrr1.reasoning.chain import AGAIN, ALL_EVIDENCE, ARROW, BAR, SECTIONS
from ehrr1.records.schema import TABLES
from ehrr1.scoring.answers import answer_lines

_SECTIONS = ("extraction", "reasoning", "results", "yes", "no")
HEADINGS = dict(zip((*SECTIONS, *CASES), _SECTIONS, strict=True))
"""Heading line -> the section that it opens."""

ANY_CASE = 5
"""Minimum length of names matched in any case; shorter ones (Na, PT) match only as spelled."""

_TIME = re.compile(r"\b(?:(\d{4}-\d\d-\d\d)[ T])?(\d\d:\d\d)(?::\d\d)?\b")
_PLACES = frozenset(table.heading for table in TABLES.values())

Edge = tuple[str, str]


class Line(NamedTuple):
    """A line of a chain, its section, and its support in the graph.

    section: "" outside all sections. Both ends of each edge are among the nodes. Headings have no
    support.
    """

    text: str
    section: str
    nodes: tuple[str, ...]
    edges: tuple[Edge, ...]


def trace(chain: str, graph: nx.DiGraph) -> list[Line]:
    """Return every non-blank line of `chain`, in order, with its support.

    - extraction: the concept and its events at the time that the line gives;
    - reasoning, "yes", "no", and lines outside all sections: the concepts, answers and candidates
      named, the edges and knowledge paths between them, and the events of the concepts: those at a
      time that the line gives, else those cited before, else (if the line gives no time) all in
      the graph;
    - results: the answer, and the edges and events by which earlier lines argued for it.

    Names are matched as whole words, longest first, so that "Sodium" is not matched in "Heparin
    Sodium". If items in several states share a name, the state in the line decides; if tables share
    it, the line's heading, then its time, then earlier citations.
    """
    tracer, section, lines = _Tracer(graph), "", []
    for text in filter(None, map(str.strip, chain.splitlines())):
        section = HEADINGS.get(text, section)
        nodes, edges = ([], []) if text in HEADINGS else tracer.rests_on(text, section)
        ends = [end for edge in edges for end in edge]
        lines.append(
            Line(text, section, tuple(dict.fromkeys(nodes + ends)), tuple(dict.fromkeys(edges)))
        )
    return lines


def traced(lines: Sequence[Line]) -> float:
    """Return the share of lines, excluding headings, with support; 0 for a chain without lines."""
    written = [line for line in lines if line.text not in HEADINGS]
    return sum(bool(line.nodes) for line in written) / max(len(written), 1)


class _Tracer:
    """A tracer that processes lines in order and keeps earlier citations and arguments."""

    def __init__(self, graph: nx.DiGraph) -> None:
        self.graph = graph
        kinds = graph.nodes(data="kind")
        concepts = [node for node, kind in kinds if kind == "concept"]
        inner = [node for node in concepts if graph.nodes[node]["table"] == "knowledge"]
        history = [node for node in concepts if node not in inner]
        self.answers = self._by_name(node for node, kind in kinds if kind in ITEMS)
        # A concept or answer may share its name with the node of the knowledge base to which it is
        # linked. The line then means the former; the path between them contains the latter.
        inside = self._by_name(inner)
        self.concepts = {name: inside[name] for name in inside.keys() - self.answers.keys()}
        routine = [node for node, kind in kinds if kind == "routine"]
        self.concepts |= self._by_name(history + routine)
        self.names = _any_of(
            [name for node, kind in kinds if kind != "event" for name in self._names(node)]
        )
        self.places = {node: self._heading(node) for node in history}
        self.knowledge = nx.DiGraph(
            (start, end) for start, end, kind in graph.edges(data="kind") if kind == "knowledge"
        )
        self.cited: dict[str, list[str]] = {}
        self.argued: dict[str, list[Edge]] = {}

    def rests_on(self, text: str, section: str) -> tuple[list[str], list[Edge]]:
        """Return the nodes and edges that support one line."""
        text = " ".join(answer_lines(text))
        if section == "results":
            answers = self._find(text, self.answers)
            return answers, [edge for answer in answers for edge in self.argued.get(answer, [])]
        if section == "extraction":
            return self._extraction(text)
        return self._reasoning(text, section)

    def _extraction(self, text: str) -> tuple[list[str], list[Edge]]:
        edges = []
        concepts = [node for node in self._concepts(text) if node in self.places]
        for node in concepts:
            events = self._events(node, text)
            self.cited[node] = self.cited.get(node, []) + events
            edges += [(node, event) for event in events]
        return concepts, edges

    def _reasoning(self, text: str, section: str) -> tuple[list[str], list[Edge]]:
        before, arrow, after = text.replace("→", ARROW).partition(ARROW)
        again = before.strip(" |") == AGAIN
        concepts = self._find(after, self.concepts) if again else self._concepts(before)
        if before.startswith(ALL_EVIDENCE):
            items = self._find(after or before, self.answers)
            concepts = [
                node for node in self.places if any(map(partial(self.graph.has_edge, node), items))
            ]
        if section in ("yes", "no"):
            answers = self.answers.get(section, []) if concepts else []
        else:
            answers = self._find(after if arrow else before, self.answers)
        found: list[Edge] = []
        for node in concepts:
            seen = [(node, event) for event in self._events(node, text)]
            found += seen
            for answer in answers:
                if edges := self._between(node, answer):
                    found += edges
                    self.argued[answer] = self.argued.get(answer, []) + seen + edges
        for pair in self._together(before if arrow else text, answers):
            found.append(pair)
            self.argued[pair[1]] = [*self.argued.get(pair[1], []), pair]
        return concepts + answers, found

    def _together(self, text: str, answers: list[str]) -> list[Edge]:
        """Return the edges from the first answer that a text names to others that come with it."""
        first = self._find(text, self.answers)[:1]
        pairs = [(node, answer) for node in first for answer in answers if node != answer]
        kinds = nx.get_edge_attributes(self.graph, "kind")
        return [pair for pair in pairs if kinds.get(pair) == TOGETHER]

    def _between(self, node: str, answer: str) -> list[Edge]:
        """Return the edge from a concept to an answer and the path through the knowledge base."""
        edges = [(node, answer)] if self.graph.has_edge(node, answer) else []
        path = path_nodes(self.graph, node, answer)
        ends_known = node in self.knowledge and answer in self.knowledge
        if not edges and ends_known and nx.has_path(self.knowledge, node, answer):
            path = nx.shortest_path(self.knowledge, node, answer)  # from a concept inside paths
        return edges + list(pairwise(path))

    def _concepts(self, text: str) -> list[str]:
        """Return the concepts named by a citation, by cells or by a sentence."""
        name, *place = text.rsplit(BAR, 2)
        if len(place) == 2 and place[0] in _PLACES:
            called = self.concepts.get(_key(_without_value(name, self.concepts)), [])
            return [node for node in called if self.places.get(node) == place[0]]
        return self._find(text, self.concepts)

    def _find(self, text: str, index: dict[str, list[str]]) -> list[str]:
        """Return the nodes of `index` whose names are cells of the text or occur in them."""
        found: list[str] = []
        for cell in filter(None, (part.strip(" |*`") for part in text.split("|"))):
            called = index.get(_key(_without_value(cell, index)))
            for nodes in [called] if called else self._named(cell, index):
                found += self._meant(nodes, text)
        return list(dict.fromkeys(found))

    def _named(self, text: str, index: dict[str, list[str]]) -> list[list[str]]:
        words = [match[0] for match in self.names.finditer(text)]
        return [index[_key(word)] for word in words if _key(word) in index]

    def _meant(self, nodes: list[str], text: str) -> list[str]:
        """Return the nodes that the text means among those that share a name.

        These are the nodes in a state that the text names ("low"), if there are any; of these, the
        nodes whose heading is in the text, else those with an event at a time in the text, else
        those cited before, else all.
        """
        nodes = [node for node in nodes if self._is_stated(node, text)] or nodes
        said = [node for node in nodes if node in self.places and self.places[node] in text]
        dated = said or [node for node in nodes if self._dated(node, text)]
        return dated or [node for node in nodes if node in self.cited] or nodes

    def _is_stated(self, node: str, text: str) -> bool:
        state = self.graph.nodes[node].get("state")
        return state is not None and re.search(rf"\b{state}\b", text, re.IGNORECASE) is not None

    def _events(self, node: str, text: str) -> list[str]:
        """Return the events of a concept to which a line refers."""
        every = [] if _times(text) else [event for event, _ in self._occurrences(node)]
        return self._dated(node, text) or self.cited.get(node, every)

    def _dated(self, node: str, text: str) -> list[str]:
        """Return the events of a concept at the times that a line gives.

        A time of day without a date means the latest event at that time of day.
        """
        times, linked = _times(text), self._occurrences(node)
        dated = [event for event, time in linked if _minute(time) in times]
        hours = [time for _, time in linked if time and time[11:16] in times]
        return dated or [event for event, time in linked if hours and time == max(hours)]

    def _occurrences(self, node: str) -> list[tuple[str, str | None]]:
        return [
            (event, data["time"])
            for _, event, data in self.graph.out_edges(node, data=True)
            if data["kind"] == "occurrence"
        ]

    def _by_name(self, nodes: Iterable[str]) -> dict[str, list[str]]:
        index: dict[str, list[str]] = {}
        for node in nodes:
            for name in dict.fromkeys(map(_key, self._names(node))):
                index.setdefault(name, []).append(node)
        return index

    def _names(self, node: str) -> list[str]:
        """Return the names of a node: its label and, for free text, the words of the text."""
        data = self.graph.nodes[node]
        return [data["label"], *([data["written"]] if "written" in data else [])]

    def _heading(self, node: str) -> str:
        data = self.graph.nodes[node]
        return heading(Concept(data["table"], data["label"]))


def _times(text: str) -> set[str]:
    """Return the times in a line ("06:10", "2150-03-04 06:10"), or "None" as a citation's time."""
    undated = {"None"} if text.endswith(f"{BAR}None") else set()
    return undated | {" ".join(filter(None, parts)) for parts in _TIME.findall(text)}


def _minute(time: str | None) -> str:
    return f"{time[:10]} {time[11:16]}" if time else "None"


def _key(name: str) -> str:
    return name.casefold() if len(name) >= ANY_CASE else name


def _without_value(cell: str, index: dict[str, list[str]]) -> str:
    """Return the cell without its value if the cell as a whole is not a name.

    `Glucose: 140` becomes `Glucose`.
    """
    parts = cell.split(": ")
    starts = (": ".join(parts[:end]) for end in range(len(parts), 0, -1))
    return next((start for start in starts if _key(start) in index), cell)


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern that matches any of the names as whole words, longest first.

    The words yes and no are excluded, because they occur everywhere.
    """
    longest_first = sorted({*names} - {"yes", "no", ""}, key=lambda name: (-len(name), name))
    spelled = (
        f"(?i:{re.escape(name)})" if len(name) >= ANY_CASE else re.escape(name)
        for name in longest_first
    )
    return re.compile(rf"(?<!\w)(?:{'|'.join(spelled) or '(?!)'})(?!\w)")
