"""The knowledge base: paths equal brute force, every line is accounted for, order does not matter."""

import gzip
import json
import random
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import networkx as nx
import numpy as np
import pyarrow as pa
import pytest

from ehrr1.errors import UserError
from ehrr1.graph.knowledge import Hop, Knowledge, PathRule
from ehrr1.graph.knowledge_build import build_open, build_umls
from tests.conftest import shared_folder

Fact = tuple[str, str, str, str]
"""head, relation, tail, source."""

ANY = PathRule(max_hops=4, max_degree=1000, relations=None)
HEADER = "concept_id\tname\tsemantic_type\tsource\tsynonyms\txrefs"


def knowledge(folder: Path, ids: Iterable[str], facts: Iterable[Fact]) -> Knowledge:
    """A knowledge base of these concepts, named "name of <id>"."""
    rows = [HEADER, *(f"{i}\tname of {i}\tkind\tmade\t\t" for i in ids)]
    dictionary, relations = folder / "concepts.tsv", folder / "relations.tsv"
    dictionary.write_text("\n".join(rows) + "\n", encoding="utf-8")
    rows = ["head\trelation\ttail\tsource", *("\t".join(fact) for fact in facts)]
    relations.write_text("\n".join(rows) + "\n", encoding="utf-8")
    build_open(dictionary, relations, folder / "knowledge")
    return Knowledge(folder / "knowledge")


def brute_force(
    ids: list[str], facts: list[Fact], start: str, end: str, rule: PathRule
) -> list[Hop] | None:
    """All shortest paths by networkx, of which the smallest."""
    everything, graph = nx.Graph(), nx.Graph()
    everything.add_nodes_from(ids)
    facts = [fact for fact in facts if fact[0] != fact[2]]
    everything.add_edges_from((head, tail) for head, _, tail, _ in facts)
    usable = [fact for fact in facts if rule.relations is None or fact[1] in rule.relations]
    hubs = {node for node, degree in everything.degree if degree > rule.max_degree} - {start, end}
    graph.add_nodes_from(node for node in ids if node not in hubs)
    graph.add_edges_from((head, tail) for head, _, tail, _ in usable if not {head, tail} & hubs)
    if start not in graph or end not in graph or not nx.has_path(graph, start, end):
        return None
    smallest = min(nx.all_shortest_paths(graph, start, end))
    if len(smallest) - 1 > rule.max_hops:
        return None
    return [_first_hop(usable, tail, head) for tail, head in pairwise(smallest)]


def _first_hop(facts: list[Fact], tail: str, head: str) -> Hop:
    along = [(False, r, s) for h, r, t, s in facts if (h, t) == (tail, head)]
    against = [(True, r, s) for h, r, t, s in facts if (t, h) == (tail, head)]
    inverse, relation, source = min(along + against)
    return Hop(tail, relation, head, source, inverse)


@pytest.mark.parametrize("seed", range(40))
def test_paths_equal_brute_force(seed: int, tmp_path: Path) -> None:
    """Over random graphs, from sparse ones to dense ones with hubs, all pairs and many rules."""
    chance = random.Random(seed)
    ids = sorted({f"{chance.choice('ABCé')}{chance.randrange(60)}" for _ in range(24)})
    crowd = ids + [chance.choice(ids)] * chance.choice([0, 20])  # a hub, in half of the graphs
    facts = [
        (chance.choice(crowd), chance.choice("rst"), chance.choice(ids), chance.choice("XY"))
        for _ in range(chance.choice([15, 25, 40, 120]))
    ]
    opened = knowledge(tmp_path, chance.sample(ids, len(ids)), facts)
    used = {relation for head, relation, tail, _ in facts if head != tail}
    for _ in range(4):
        some = tuple(sorted(chance.sample(sorted(used), chance.randint(1, len(used)))))
        rule = PathRule(
            max_hops=chance.randint(1, 5),
            max_degree=chance.choice([2, 3, 5, 1000]),
            relations=chance.choice([None, some]),
        )
        for start in ids:
            for end in chance.sample(ids, 8):
                expected = brute_force(ids, facts, start, end, rule)
                assert opened.path(start, end, rule) == expected, (start, end, rule)
