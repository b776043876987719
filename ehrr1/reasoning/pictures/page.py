"""Write the evidence of one sample as an interactive page, a single self-contained HTML file.

It has three panes: the record as a timeline, the graph, and the chain. `page.html`, `.css` and
`.js` are the page; this module adds the data as JSON.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx

from ehrr1.graph.evidence import EVIDENCE, ITEMS, with_state
from ehrr1.reasoning.pictures.layout import Layout, arrange
from ehrr1.reasoning.trace import HEADINGS, trace
from ehrr1.records.events import Event
from ehrr1.records.schema import TABLES
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.samples import Sample
from ehrr1.web_page import filled, script_data

MOST_EVIDENCE = 3
"""Lines of evidence of an item that are drawn before the reader asks for all."""


@dataclass(frozen=True, slots=True)
class PageContent:
    """The content of a page.

    draft: a line of chains.jsonl, or None; `note` then states why there is none. is_open: the
    setting `data.open`; if False, the page warns that it contains patient data.
    """

    sample: Sample
    context: Sequence[Event]
    graph: nx.DiGraph
    draft: dict[str, Any] | None
    note: str
    is_open: bool


def page(shown: PageContent) -> str:
    """Return the page as HTML."""
    data = script_data(page_data(shown))
    return filled("ehrr1.reasoning.pictures", shown.sample.sample_id, data=data)


def page_data(shown: PageContent) -> dict[str, Any]:
    """Return everything that the page shows.

    Chain lines refer to nodes by id and to edges by position.
    """
    sample, layout = shown.sample, arrange(shown.graph)
    chain = _chain(shown.draft, shown.graph) if shown.draft else None
    return {
        "sample_id": sample.sample_id,
        "task": sample.task,
        "question": sample.instruction or TASKS[sample.task].instruction,
        "prediction_time": f"{sample.prediction_time:%Y-%m-%d %H:%M}",
        "answer": list(sample.target),
        "open": shown.is_open,
        "events": [_event(at, event) for at, event in enumerate(shown.context)],
        "nodes": _nodes(shown.graph, layout),
        "edges": _edges(shown.graph),
        "whole": _view(layout, range(len(shown.graph.edges))),
        "strongest": _strongest(shown.graph, chain),
        "chain": chain,
        "note": shown.note,
    }


def _event(position: int, event: Event) -> dict[str, Any]:
    known = TABLES.get(event.table)  # text-only events may have other headings
    return {
        "id": f"event:{position}",
        "heading": known.heading if known else _first_line(event.text or ""),
        "time": str(event.time) if event.time else None,
        "keys": list(known.keys) if known else [],
        "rows": event.rows,
        "text": event.text,
    }


def _first_line(text: str) -> str:
    return text.partition("\n")[0].lstrip("# ")


def _nodes(graph: nx.DiGraph, layout: Layout) -> list[dict[str, Any]]:
    """Return the nodes column by column, which is the order of keyboard navigation."""
    return [
        {
            "id": node,
            "kind": "knowledge" if data.get("table") == "knowledge" else data["kind"],
            "label": with_state(data),
            "table": data.get("table", ""),
            "concept_id": data.get("concept_id", ""),
        }
        for column in layout.columns
        for node, data in ((node, graph.nodes[node]) for node in column.nodes)
    ]


def _view(layout: Layout, edges: Iterable[int]) -> dict[str, Any]:
    """Return what is drawn: the edges by position, the column and height of each node."""
    return {
        "columns": [column.title for column in layout.columns],
        "rows": layout.rows,
        "places": {
            node: [at, layout.heights[node]]
            for at, column in enumerate(layout.columns)
            for node in column.nodes
        },
        "edges": list(edges),
    }


def _strongest(graph: nx.DiGraph, chain: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the view of the strongest evidence of each item, and of what the chain names.

    None where that is the whole graph. Events are shown with what stands in them; paths of
    knowledge are shown whole.
    """
    lines = chain["lines"] if chain else []
    edges, kinds = list(graph.edges(data=True)), dict(graph.nodes(data="kind"))
    kept = {at for line in lines for at in line["edges"]}
    of_item: dict[str, list[int]] = {}
    for at, (start, end, data) in enumerate(edges):
        if data["kind"] == "knowledge":
            kept.add(at)
        elif data["kind"] != "occurrence":
            for item in {start, end} if data["kind"] == "together" else {end}:
                of_item.setdefault(item, []).append(at)
    for found in of_item.values():
        kept |= set(sorted(found, key=lambda at: -edges[at][2].get("lift", 0))[:MOST_EVIDENCE])
    nodes = {node for line in lines for node in line["nodes"]}
    nodes |= {node for at in kept for node in edges[at][:2]}
    nodes |= {node for node, kind in kinds.items() if kind in ITEMS}
    stands_in = [at for at, edge in enumerate(edges) if edge[2]["kind"] == "occurrence"]
    kept |= {at for at in stands_in if edges[at][0] in nodes}
    if len(kept) == len(edges):
        return None
    few = nx.DiGraph()
    few.add_nodes_from((node, data) for node, data in graph.nodes(data=True) if node in nodes)
    for at in sorted(kept):
        start, end, data = edges[at]
        few.add_nodes_from((node, graph.nodes[node]) for node in (start, end))
        few.add_edge(start, end, **data)
    return _view(arrange(few), sorted(kept))


def _edges(graph: nx.DiGraph) -> list[dict[str, Any]]:
    """Return the edges with their data; the width of evidence grows with its lift."""
    edges = []
    for start, end, data in graph.edges(data=True):
        width = {"width": stroke(data["lift"])} if data["kind"] in EVIDENCE else {}
        edges.append({**data, **width, "source": start, "target": end})
    return edges


def stroke(lift: float) -> float:
    """Return the width of an edge in pixels, from 0.5 to 6.

    It is 1 at a lift of 1 and grows by 1 for each doubling of the lift.
    """
    return round(min(max(1 + math.log2(max(lift, 1e-6)), 0.5), 6), 2)


def _chain(draft: dict[str, Any], graph: nx.DiGraph) -> dict[str, Any]:
    places = {edge: at for at, edge in enumerate(graph.edges)}
    lines = [
        {
            "text": line.text,
            "heading": line.text in HEADINGS,
            "nodes": line.nodes,
            "edges": [places[edge] for edge in line.edges],
        }
        for line in trace(draft["chain"], graph)
    ]
    about = {name: draft[name] for name in ("draft", "kept", "rejected_by")}
    return about | {"lines": lines}
