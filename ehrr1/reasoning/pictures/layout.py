"""Lay out the nodes of an evidence graph in columns, from events to answers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import networkx as nx
import numpy as np
from scipy.optimize import isotonic_regression

from ehrr1.graph.evidence import ITEMS

SWEEPS = 8
"""Rounds of moving each node towards its neighbours; enough for a graph of hundreds of nodes."""


class Column(NamedTuple):
    """A title and its nodes, from top to bottom."""

    title: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """Columns from left to right, and each node's vertical position, from 0 (top) to `rows` - 1.

    Positions in a column are at least 1 apart.
    """

    columns: tuple[Column, ...]
    heights: dict[str, float]
    rows: int


def arrange(graph: nx.DiGraph) -> Layout:
    """Lay out events by time, then concepts, knowledge (one column per hop), and answers.

    Likely items that are not the answer (candidates) stand among the answers.

    Events keep their order. The other columns are sorted, and all nodes are moved, towards the mean
    position of their neighbours, so that few edges cross (the barycentre heuristic). Columns
    without nodes are left out. The result is deterministic.
    """
    columns = [(title, nodes) for title, nodes in _columns(graph) if nodes]
    rows = max((len(nodes) for _, nodes in columns), default=0)
    heights = {node: float(at) for _, nodes in columns for at, node in enumerate(nodes)}
    for _ in range(SWEEPS):
        for title, nodes in columns:
            wanted = {node: _neighbours_height(graph, node, heights, rows) for node in nodes}
            if title != "Events":
                nodes.sort(key=wanted.__getitem__)
            heights |= _spread(nodes, wanted, rows)
    return Layout(tuple(Column(title, tuple(nodes)) for title, nodes in columns), heights, rows)


def _columns(graph: nx.DiGraph) -> list[tuple[str, list[str]]]:
    kinds = graph.nodes(data="kind")
    concepts = [node for node, kind in kinds if kind == "concept"]
    history = [node for node in concepts if graph.nodes[node]["table"] != "knowledge"]
    history += [node for node, kind in kinds if kind == "routine"]
    events = [node for node, kind in kinds if kind == "event"]
    return [
        ("Events", sorted(events, key=lambda node: int(node.removeprefix("event:")))),
        ("Concepts", history),
        *(("Knowledge", nodes) for nodes in _hops(graph, history)),
        ("Answers", [node for item in ITEMS for node, kind in kinds if kind == item]),
    ]


def _hops(graph: nx.DiGraph, history: Sequence[str]) -> list[list[str]]:
    """Return the inner nodes of knowledge paths by distance from the concepts of the record."""
    layers = list(nx.bfs_layers(_knowledge(graph, history), list(history)))[1:]
    inner = [[node for node in layer if _is_inner(graph, node)] for layer in layers]
    return [sorted(nodes) for nodes in inner if nodes]


def _knowledge(graph: nx.DiGraph, history: Sequence[str]) -> nx.DiGraph:
    paths = nx.DiGraph()
    paths.add_nodes_from(history)
    paths.add_edges_from(
        (start, end) for start, end, kind in graph.edges(data="kind") if kind == "knowledge"
    )
    return paths


def _is_inner(graph: nx.DiGraph, node: str) -> bool:
    return graph.nodes[node].get("table") == "knowledge"


def _neighbours_height(graph: nx.DiGraph, node: str, heights: dict[str, float], rows: int) -> float:
    """Return the mean position of a node's neighbours, or the bottom row if it has none."""
    near = [heights[other] for other in nx.all_neighbors(graph, node)]
    return sum(near) / len(near) if near else rows - 1.0


def _spread(nodes: Sequence[str], wanted: dict[str, float], rows: int) -> dict[str, float]:
    """Return positions in this order, at least 1 apart, closest to those wanted (least squares)."""
    places = np.arange(len(nodes))
    shifts = isotonic_regression(np.array([wanted[node] for node in nodes]) - places).x
    heights = np.clip(shifts, 0, rows - len(nodes)) + places
    return dict(zip(nodes, heights.tolist(), strict=True))
