"""Draw the evidence graph of one sample as a static figure.

It shows events, concepts, knowledge and answers.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, PathPatch
from matplotlib.path import Path as Curve
from matplotlib.textpath import text_to_path

from ehrr1.graph.evidence import EVIDENCE, ITEMS, OTHER_REASONS, with_state
from ehrr1.reasoning.pictures.layout import Layout, arrange

INK, SOFT, PAPER = "#1f2933", "#5b6670", "#ffffff"
FILL = {"event": "#eef1f4", "concept": "#dcebf7", "knowledge": "#fdebdc", "answer": "#d9f2e8"}
FILL |= {"routine": FILL["concept"], "candidate": PAPER}
EDGE = {
    "occurrence": "#7a8691",
    "cooccurrence": "#0072B2",
    "repetition": "#CC79A7",
    "again": "#CC79A7",
    "routine": "#E69F00",
    "together": "#009E73",
    "knowledge": "#D55E00",
}
BORDER = EDGE | {"event": "#7a8691", "concept": "#0072B2"} | dict.fromkeys(ITEMS, "#009E73")
"""Colours of Okabe and Ito, which are distinguishable with any kind of colour vision."""
SAID = {
    "occurrence": "stands in the event",
    "cooccurrence": "goes with the answer (width: lift)",
    "repetition": "the answer's own item, done before (width: lift)",
    "again": "the answer's own item, done before (no lift)",
    "routine": "routine in the care unit, or for all patients",
    "candidate": "likely by the record, not the answer",
    "together": "comes with another answer",
    "knowledge": "knowledge (arrow: the fact's direction)",
}

_DOTTED, _DASHED = (0, (1, 1.5)), (0, (3, 1.5))

SIZE, SMALL = 8.0, 6.5
"""Font sizes in points: labels; tables, relations and legend."""
ROW, BOX, PAD, GAP, MARGIN = 0.27, 0.2, 0.06, 0.95, 0.25
"""Lengths in inches: row pitch, box height, box padding, gap between columns, outer margin."""
BULGE = 0.75 * GAP / 2
"""Inches by which a curve between two boxes of one column leaves it (see `_curve`)."""
STROKE = 0.5
"""Inches of a legend's stroke and of the space around it."""
WIDEST = {
    "event": 3.1,
    "concept": 2.9,
    "routine": 2.9,
    "knowledge": 1.8,
    **dict.fromkeys(ITEMS, 2.7),
}
SLACK = 1.05
"""Factor by which text is drawn wider than measured, since glyphs are snapped to whole pixels."""
HEAD, FOOT, LEGEND_ROW = 0.85, 0.4, 0.16

Place = tuple[float, float, float]
"""Left, right and vertical centre of a box, in inches from the figure's top left corner."""


@dataclass(frozen=True, slots=True)
class Box:
    """The texts of a node, shortened to fit: its label and, for a concept, its table.

    width: inches.
    """

    kind: str
    label: str
    table: str
    width: float


def draw(graph: nx.DiGraph, title: str, path: Path, form: str = "png") -> None:
    """Write the graph as a figure ("png" or "svg") with `title` above it."""
    layout = arrange(graph)
    boxes = {node: box_of(graph, node) for node in graph}
    places, lefts, width = _places(layout, boxes)
    if any(places[start][0] == places[end][0] == lefts[-1] for start, end in graph.edges):
        width += BULGE
    width, handles = max(width, 6.5), list(_handles(graph))
    columns = _legend_columns(handles, width)
    foot = FOOT + LEGEND_ROW * (math.ceil(len(handles) / columns) - 1)
    height = HEAD + foot + ROW * max(layout.rows, 2)
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    axes.text(
        MARGIN, 0.3, fitted(title, width - 2 * MARGIN, 11), fontsize=11, color=INK, parse_math=False
    )
    for left, column in zip(lefts, layout.columns, strict=True):
        axes.text(left, HEAD - 0.18, column.title, fontsize=SIZE, color=SOFT, weight="bold")
    _draw_edges(axes, graph, places)
    for node, box in boxes.items():
        _draw_box(axes, box, places[node], alone=graph.degree(node) == 0)
    _legend(axes, handles, columns, height)
    figure.savefig(path, format=form, dpi=150)


def box_of(graph: nx.DiGraph, node: str) -> Box:
    """Return the box of a node."""
    data = graph.nodes[node]
    table = data.get("table", "")
    kind = "knowledge" if table == "knowledge" else data["kind"]
    label, table = _time_first(with_state(data)), table if kind == "concept" else ""
    beside = _inches(table, SMALL) + 2 * PAD if table else 0.0
    label = fitted(label, WIDEST[kind] - beside - 2 * PAD, SIZE)
    return Box(kind, label, table, _inches(label, SIZE) + beside + 2 * PAD)


def fitted(text: str, inches: float, size: float) -> str:
    """Return the text, shortened with an ellipsis to at most `inches`.

    size: font size in points.
    """
    if _inches(text, size) <= inches:
        return text
    fits = (end for end in range(len(text), 0, -1) if _inches(text[:end] + "…", size) <= inches)
    return text[: next(fits, 0)].rstrip() + "…"


def _inches(text: str, size: float) -> float:
    font = FontProperties(size=size)
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    return SLACK * width / 72


def _time_first(label: str) -> str:
    """Put the time of an event's label first, so that the times of a column are aligned.

    `Heading [2180-07-23 14:00:00]` becomes `2180-07-23 14:00  Heading`.
    """
    heading, bracket, time = label.rpartition(" [")
    return f"{time[:16].rstrip(']')}  {heading}" if bracket and time.endswith("]") else label


def _places(layout: Layout, boxes: dict[str, Box]) -> tuple[dict[str, Place], list[float], float]:
    """Return each box's place, each column's left edge, and the total width, in inches."""
    places: dict[str, Place] = {}
    lefts, left = [], MARGIN
    for column in layout.columns:
        right = left + max(boxes[node].width for node in column.nodes)
        for node in column.nodes:
            places[node] = (left, right, HEAD + ROW * (layout.heights[node] + 0.5))
        lefts.append(left)
        left = right + GAP
    return places, lefts, left - GAP + MARGIN


def _draw_box(axes: Axes, box: Box, place: Place, alone: bool) -> None:
    left, right, middle = place
    axes.add_patch(
        FancyBboxPatch(
            (left, middle - BOX / 2),
            right - left,
            BOX,
            boxstyle="round,pad=0,rounding_size=0.05",
            facecolor=PAPER if alone else FILL[box.kind],
            edgecolor=BORDER[box.kind],
            linestyle=":" if alone else "--" if box.kind == "candidate" else "-",
            linewidth=0.8,
            zorder=3,
        )
    )
    style: dict[str, Any] = {"va": "center_baseline", "zorder": 4, "parse_math": False}
    axes.text(left + PAD, middle, box.label, fontsize=SIZE, color=SOFT if alone else INK, **style)
    axes.text(right - PAD, middle, box.table, fontsize=SMALL, color=SOFT, ha="right", **style)


# --- edges ------------------------------------------------------------------------------------


def _draw_edges(axes: Axes, graph: nx.DiGraph, places: dict[str, Place]) -> None:
    """Draw the edges, weakest first, so that the strongest are on top."""
    width = _widths(graph)
    said: list[tuple[float, float]] = []
    edges = sorted(graph.edges(data=True), key=lambda edge: edge[2].get("lift", 0.0))
    for start, end, data in edges:
        curve = _curve(places[start], places[end])
        if data["kind"] == "knowledge":
            _draw_fact(axes, curve, data, said)
            continue
        strong = data["kind"] in EVIDENCE
        axes.add_patch(
            PathPatch(
                curve,
                facecolor="none",
                edgecolor=EDGE[data["kind"]],
                linewidth=width(data["lift"]) if strong else 0.7,
                alpha=0.55 if strong else 0.8,
                linestyle="-" if strong else _DASHED if data["kind"] in OTHER_REASONS else _DOTTED,
            )
        )


def _draw_fact(axes: Axes, curve: Curve, data: dict, said: list[tuple[float, float]]) -> None:
    """Draw an edge of a knowledge path as an arrow in the fact's direction.

    It is labelled with the relation if there is room.
    """
    linked = data["relation"] == "linked"
    head = "-" if linked else "<|-" if data.get("inverse") else "-|>"
    axes.add_patch(
        FancyArrowPatch(
            path=curve,
            arrowstyle=head,
            mutation_scale=7,
            color=EDGE["knowledge"],
            linewidth=1.0,
            linestyle=(0, (4, 2)) if linked else "-",
            zorder=2,
        )
    )
    x, y = np.asarray(curve.vertices).mean(axis=0).tolist()
    free = all(abs(x - other[0]) > GAP / 2 or abs(y - other[1]) > 0.11 for other in said)
    if linked or not free:
        return
    said.append((x, y))
    axes.text(
        x,
        y,
        fitted(data["relation"].replace("_", " "), GAP - 0.25, SMALL),
        fontsize=SMALL,
        color=EDGE["knowledge"],
        ha="center",
        va="center",
        zorder=5,
        parse_math=False,
        bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.6},
    )


def _curve(start: Place, end: Place) -> Curve:
    """Return a curve between the facing sides of two boxes, horizontal at both ends."""
    if start[0] == end[0]:
        x0 = x1 = start[1]
        bend0 = bend1 = x0 + GAP / 2
    else:
        x0, x1 = (start[1], end[0]) if start[0] < end[0] else (start[0], end[1])
        bend0 = bend1 = (x0 + x1) / 2
    points = [(x0, start[2]), (bend0, start[2]), (bend1, end[2]), (x1, end[2])]
    return Curve(points, [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4])


def _lifts(graph: nx.DiGraph) -> list[float]:
    edges = graph.edges(data=True)
    return [data["lift"] for *_, data in edges if data["kind"] in EVIDENCE]


def _widths(graph: nx.DiGraph) -> Callable[[float], float]:
    """Return a function from lift to line width in points.

    It is logarithmic, from the smallest to the largest lift of the graph.
    """
    lifts = [math.log(max(lift, 1e-6)) for lift in _lifts(graph)] or [0.0]
    low, span = min(lifts), max(max(lifts) - min(lifts), 1e-6)
    return lambda lift: 0.6 + 2.4 * (math.log(max(lift, 1e-6)) - low) / span


def _legend_columns(handles: Sequence[Line2D], width: float) -> int:
    """Return how many columns of the legend fit into a figure that is `width` inches wide."""
    widest = max((_inches(str(one.get_label()), SMALL) for one in handles), default=0.0) + STROKE
    return min(max(int((width - 2 * MARGIN) / widest), 1), max(len(handles), 1))


def _legend(axes: Axes, handles: Sequence[Line2D], columns: int, height: float) -> None:
    if not handles:
        axes.text(
            MARGIN, height - FOOT / 2, "The context holds no evidence.", fontsize=SIZE, color=SOFT
        )
        return
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(MARGIN, height - 0.08),
        bbox_transform=axes.transData,
        ncols=columns,
        fontsize=SMALL,
        labelcolor=SOFT,
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        columnspacing=1.4,
    )


def _handles(graph: nx.DiGraph) -> Iterator[Line2D]:
    kinds: Sequence[str] = [kind for *_, kind in graph.edges(data="kind")]
    width, lifts = _widths(graph), _lifts(graph)
    if "occurrence" in kinds:
        yield _stroke("occurrence", SAID["occurrence"], 0.9, _DOTTED)
    if lifts:
        for lift in sorted({min(lifts), max(lifts)}):
            yield _stroke("cooccurrence", f"lift {lift:.3g}", width(lift), "-")
    if "repetition" in kinds:
        yield _stroke("repetition", SAID["repetition"], 1.0, "-")
    for kind in OTHER_REASONS:
        if kind in kinds:
            yield _stroke(kind, SAID[kind], 0.9, _DASHED)
    if "knowledge" in kinds:
        yield _stroke("knowledge", SAID["knowledge"], 1.0, "-")
    if "candidate" in nx.get_node_attributes(graph, "kind").values():
        yield Line2D(
            [],
            [],
            color=BORDER["candidate"],
            label=SAID["candidate"],
            linestyle="--",
            linewidth=0.8,
        )


def _stroke(kind: str, label: str, width: float, style: Any) -> Line2D:
    return Line2D([], [], color=EDGE[kind], label=label, linewidth=width, linestyle=style)
