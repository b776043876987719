"""Write knowledge paths as lines of a chain's reasoning.

    Essential hypertension | is a kind of | hypertension | is treated with | Lisinopril

Names and verbs stand between bars, as in the other lines of a chain, and begin at the end from
which the path reads as a sentence.
"""

import re
from collections.abc import Iterator, Sequence

import networkx as nx

from ehrr1.graph.paths import sentence
from ehrr1.reasoning.chain import BAR
from ehrr1.records.events import Event

_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def path_lines(
    graph: nx.DiGraph, concept: str, items: Sequence[str], context: Sequence[Event]
) -> Iterator[str]:
    """Yield a line for each answer item to which a path leads from a concept.

    A path with a number that the context does not show ("Type 2" inside a name) has no line,
    because such a chain would be screened out.
    """
    for item in items:
        words = sentence(graph, concept, f"answer:{item}")
        numbers = {number for name in words[2:-1:2] for number in _NUMBER.findall(name)}
        if words and numbers <= (_numbers_of(context) if numbers else numbers):
            yield BAR.join(words)


def _numbers_of(context: Sequence[Event]) -> set[str]:
    cells = {cell for event in context for row in event.rows for cell in row}
    names = {item for event in context for item in event.items}
    return {number for text in cells | names for number in _NUMBER.findall(text)}
