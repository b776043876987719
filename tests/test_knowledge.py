"""The knowledge base: paths equal brute force, lines are accounted for, their order is nothing."""

import gzip
import json
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise, permutations
from pathlib import Path

import networkx as nx
import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from ehrr1.errors import UserError
from ehrr1.graph.knowledge import Hop, Knowledge, PathRule
from ehrr1.graph.knowledge_build import build_open, build_umls
from ehrr1.graph.relation_kinds import KINDS, RELATIONS, verb
from tests.conftest import shared_folder

Fact = tuple[str, str, str, str]
"""head, relation, tail, source."""

ANY = PathRule(max_hops=4, max_degree=1000, relations=None)
NO_GZIP = b"concept_id\tname\n"
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


@pytest.mark.parametrize("seed", range(25))
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


WORDS = {
    "is_a": "c.",
    "same_as": "ss",
    "may_treat": "FF",
    "has_symptom": "Ff",
    "PAR": ".c",
    "r": "..",
}
"""The letter of a step along a fact of each relation and against it; "." cannot be read."""

SENTENCE = re.compile(r"s{0,2}(c s{0,2})*(F s{0,2}(c s{0,2})?)?|s{0,2}f s{0,2}(c s{0,2})?", re.X)


def read_by_brute_force(
    facts: list[Fact], start: str, end: str, rule: PathRule
) -> list[Hop] | None:
    """The smallest walk of at most `max_hops` steps whose letters are a sentence."""
    steps: dict[str, list[Hop]] = {}
    for head, relation, tail, source in set(facts):
        if head != tail:
            steps.setdefault(head, []).append(Hop(head, relation, tail, source, False))
            steps.setdefault(tail, []).append(Hop(tail, relation, head, source, True))
    narrower = {concept: narrower_ways(steps, concept, 8) for concept in steps}
    if any(narrower.get(concept, 0) > rule.max_narrower for concept in (start, end)):
        return None

    def walks(hops: tuple[Hop, ...], at: str) -> Iterator[tuple[Hop, ...]]:
        if at == end and hops:
            yield hops
        elif len(hops) < rule.max_hops and (not hops or passable(at)):
            for hop in steps.get(at, []):
                yield from walks((*hops, hop), hop.head)

    def passable(concept: str) -> bool:
        neighbours = {hop.head for hop in steps[concept]}
        return len(neighbours) <= rule.max_degree and narrower[concept] <= rule.max_narrower

    def ambiguous(concept: str) -> bool:
        equals = {hop.head for hop in steps[concept] if hop.relation == "same_as"}
        return len({equal[0] for equal in equals}) < len(equals)

    def is_read(hops: tuple[Hop, ...]) -> bool:
        letters = "".join(WORDS[hop.relation][hop.inverse] for hop in hops)
        through = [one.head for one, other in pairwise(hops) if {one[1], other[1]} == {"same_as"}]
        return SENTENCE.fullmatch(letters) is not None and not any(map(ambiguous, through))

    def size(hops: tuple[Hop, ...]) -> tuple:
        return len(hops), [hop.head for hop in hops], [(hop[4], hop[1], hop[3]) for hop in hops]

    found = min(filter(is_read, walks((), start)), key=size, default=None)
    return None if found is None else list(found)


def narrower_ways(steps: dict[str, list[Hop]], concept: str, levels: int) -> int:
    """The number of narrower concepts, once for each way."""
    down = [hop for hop in steps.get(concept, []) if WORDS[hop.relation][not hop.inverse] == "c"]
    return sum(1 + narrower_ways(steps, hop.head, levels - 1) for hop in down) if levels else 0


@pytest.mark.parametrize("seed", range(6))
def test_sentences_equal_brute_force(seed: int, tmp_path: Path) -> None:
    """A meaningful path is the shortest walk that reads as a sentence from one of its ends."""
    chance = random.Random(seed)
    ids = [f"{vocabulary}:{number}" for vocabulary in "AB" for number in range(7)]
    facts = [
        (chance.choice(ids), chance.choice([*WORDS, "is_a", "same_as"]), chance.choice(ids), "X")
        for _ in range(chance.choice([14, 22, 28]))
    ]
    opened = knowledge(tmp_path, ids, [*facts, ("A:0", "is_a", "A:1", "X")])
    facts.append(("A:0", "is_a", "A:1", "X"))
    found = 0
    for limit in (1000, 3):
        rule = PathRule(4, chance.choice([4, 1000]), None, meaningful=True, max_narrower=limit)
        for start, end in permutations(ids, 2):
            there = read_by_brute_force(facts, start, end, rule)
            back = read_by_brute_force(facts, end, start, rule)
            if back is not None and (there is None or len(back) < len(there)):
                there = [hop.turned() for hop in back[::-1]]
            if there is not None and all(hop.relation == "same_as" for hop in there):
                there = []
            assert opened.path(start, end, rule) == there, (start, end, rule)
            found += bool(there)
    assert found


MEANT = PathRule(max_hops=6, max_degree=1000, relations=None, meaningful=True)


def test_a_meaningful_path_is_read_in_one_direction(tmp_path: Path) -> None:
    facts = [
        ("lisinopril", "may_treat", "hypertension", "X"),
        ("atenolol", "may_treat", "hypertension", "X"),
        ("lisinopril", "has_role", "vasodilator", "X"),
        ("nitroglycerin", "has_role", "vasodilator", "X"),
        ("essential hypertension", "is_a", "hypertension", "X"),
        ("renal hypertension", "is_a", "hypertension", "X"),
        ("hypertension", "is_a", "artery disease", "X"),
        ("asthma", "has_symptom", "pain", "X"),
        ("chest pain", "is_a", "pain", "X"),
        ("asthma", "is_a", "lung disease", "X"),
        ("lung disease", "is_a", "thoracic disease", "X"),
        ("J45", "same_as", "asthma", "X"),
        ("asthma", "next_to", "hypertension", "X"),
    ]
    ids = sorted({name for head, _, tail, _ in facts for name in (head, tail)})
    opened = knowledge(tmp_path, ids, facts)

    def read(start: str, end: str, rule: PathRule = MEANT) -> list[str] | None:
        path = opened.path(start, end, rule)
        return path and [("-" if hop.inverse else "") + hop.relation for hop in path]

    assert read("essential hypertension", "lisinopril") == ["is_a", "-may_treat"]
    assert read("lisinopril", "essential hypertension") == ["may_treat", "-is_a"]
    assert read("lisinopril", "artery disease") == ["may_treat", "is_a"]
    assert read("asthma", "pain") == ["has_symptom"]
    assert read("lung disease", "pain") == ["-is_a", "has_symptom"]  # pain is a symptom of asthma
    assert read("thoracic disease", "pain") is None  # two classes above what has the symptom
    assert read("asthma", "chest pain") is None  # not every kind of pain is its symptom
    assert read("J45", "thoracic disease") == ["same_as", "is_a", "is_a"]
    assert opened.path("J45", "asthma", MEANT) == []  # one concept in two sources
    for start, end in (
        ("essential hypertension", "renal hypertension"),  # a shared class
        ("lisinopril", "atenolol"),  # a shared disease
        ("lisinopril", "nitroglycerin"),  # a shared role
        ("asthma", "hypertension"),  # a relation without a known meaning
    ):
        assert read(start, end) is None
        assert read(start, end, PathRule(6, 1000, None)) is not None
    two = replace(MEANT, max_narrower=2)
    assert read("lisinopril", "hypertension", two) == ["may_treat"]
    assert read("lisinopril", "artery disease", two) is None  # three concepts are narrower
    assert read("lisinopril", "hypertension", replace(MEANT, relations=("has_role",))) is None
    only = replace(MEANT, relations=("next_to",))
    with pytest.raises(UserError, match=r"no relation type is known \(next_to\); set graph.path"):
        opened.path("asthma", "hypertension", only)


def test_every_relation_type_has_one_meaning() -> None:
    """UMLS states most facts in both directions: their verbs are the same."""
    pairs = [
        ("may_treat", "may_be_treated_by", "is used to treat"),
        ("has_manifestation", "manifestation_of", "has the symptom"),
        ("isa", "inverse_isa", "is a kind of"),
        ("CHD", "PAR", "is a kind of"),
        ("RN", "RB", "is a kind of"),
        ("has_ingredient", "ingredient_of", "contains"),
        ("induces", "induced_by", "causes"),
        ("has_mechanism_of_action", "mechanism_of_action_of", "has the role"),
    ]
    for along, against, expected in pairs:
        assert verb(along, inverse=False) == verb(against, inverse=True) == expected
        assert verb(along, inverse=True) == verb(against, inverse=False) != expected
    assert verb("part_of", inverse=True) == "part of (reversed)"
    assert set(KINDS) == {kind for kind, _ in RELATIONS.values()}


def test_unknown_same_and_forbidden(tmp_path: Path) -> None:
    opened = knowledge(tmp_path, ["A", "B", "C"], [("A", "r", "B", "X"), ("C", "s", "B", "X")])
    assert "A" in opened and "Z" not in opened and "" not in opened
    assert opened.name("B") == "name of B"
    with pytest.raises(KeyError):
        opened.name("Z")
    assert opened.path("A", "A", ANY) == []
    assert opened.path("A", "Z", ANY) is None and opened.path("Z", "Z", ANY) is None
    assert opened.path("A", "C", ANY) == [
        Hop("A", "r", "B", "X", inverse=False),
        Hop("B", "s", "C", "X", inverse=True),
    ]
    assert opened.path("A", "C", PathRule(1, 1000, None)) is None
    assert opened.path("A", "C", PathRule(4, 1, None)) is None  # B has two neighbours
    assert opened.path("A", "B", PathRule(4, 0, None)) is not None  # ends may have any number
    assert opened.path("A", "C", PathRule(4, 1000, ("r",))) is None
    with pytest.raises(UserError, match=r"graph.relations=\['treats'\].* it has r, s"):
        opened.path("A", "C", PathRule(4, 1000, ("treats",)))


def test_a_fact_that_runs_along_the_path_comes_first(tmp_path: Path) -> None:
    """Then the relation, then the source: UMLS has each relation in both directions."""
    facts = [("B", "a", "A", "X"), ("A", "s", "B", "X"), ("A", "r", "B", "Y"), ("A", "r", "B", "X")]
    opened = knowledge(tmp_path, ["A", "B"], facts)
    assert opened.path("A", "B", ANY) == [Hop("A", "r", "B", "X", inverse=False)]
    assert opened.path("B", "A", ANY) == [Hop("B", "a", "A", "X", inverse=False)]
    assert opened.path("B", "A", PathRule(4, 9, ("s",))) == [Hop("B", "s", "A", "X", inverse=True)]


def test_order_and_blocks_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same lines in any order, in batches of any size, give the same bytes."""
    chance = random.Random(3)
    ids = [f"C{number}" for number in range(50)] + ["C7", "C8"]
    facts = [
        (chance.choice(ids), chance.choice("rst"), chance.choice(ids), chance.choice("XY"))
        for _ in range(300)
    ]
    written = []
    for part, block in (("a", 4_000_000), ("b", 7), ("c", 1)):
        monkeypatch.setattr("ehrr1.graph.knowledge_build.BLOCK", block)
        monkeypatch.setattr("ehrr1.graph.knowledge_build.BATCH", block)
        (tmp_path / part).mkdir()
        chance.shuffle(ids)
        chance.shuffle(facts)
        knowledge(tmp_path / part, ids, facts)
        files = sorted((tmp_path / part / "knowledge").iterdir())
        written.append({path.name: path.read_bytes() for path in files})
    assert written[0] == written[1] == written[2]


@pytest.mark.parametrize("suffix", [".tsv", ".tsv.gz"])
def test_every_open_line_is_accounted_for(suffix: str, tmp_path: Path) -> None:
    concepts = [
        HEADER.replace("concept_id\tname", "name\tconcept_id"),  # columns are found by name
        "alpha\tA\tkind\tX\t\t",
        "an alpha\tA\tother\tX\t\t",  # duplicate, with a larger name
        'be "ta\tB\tkind\tX\t\t',  # an open quote is no quote
        "\tC\tkind\tX\t\t",  # unnamed
        "delta\t\tkind\tX\t\t",  # no id
        "epsilon\tE\tkind",  # too short
        "zeta\tZ\tkind\tX\t\t\t",  # too long
        "",
    ]
    relations = [
        "head\trelation\ttail\tsource",
        *["A\tr\tB\tX"] * 3,
        "A\tr\tA\tX",
        "A\tr\tC\tX",
        "Q\tr\tB\tX",
        "A\t\tB\tX",
        "A\tr\tB",
        "A\tr\tB\tX\tmore",
        "B\tr\tA\tX",
    ]
    paths = [tmp_path / f"concepts{suffix}", tmp_path / f"relations{suffix}"]
    for path, lines in zip(paths, (concepts, relations), strict=True):
        text = ("\r\n".join(lines) + "\r\n").encode() + b"\xff\xfe\n"  # and a line of no text
        path.write_bytes(gzip.compress(text) if suffix.endswith("gz") else text)
    counts = build_open(*paths, tmp_path / "knowledge")
    assert counts == {
        **{"concepts_lines": 9, "concepts": 2, "concepts_duplicate": 1, "concepts_unnamed": 1},
        "concepts_malformed": 5,
        **{"relations_lines": 11, "relations": 2, "relations_duplicate": 2, "relations_self": 1},
        **{"relations_unknown": 2, "relations_malformed": 4},
    }
    assert_balanced(counts)
    opened = Knowledge(tmp_path / "knowledge")
    assert (opened.name("A"), opened.name("B")) == ("alpha", 'be "ta')
    assert json.loads((tmp_path / "knowledge" / "meta.json").read_text())["counts"] == counts


def assert_balanced(counts: dict[str, int]) -> None:
    """Lines in = kept + left out by reason, for each file."""
    for kind in {name.partition("_")[0] for name in counts}:
        others = {name: n for name, n in counts.items() if name.partition("_")[0] == kind}
        lines = others.pop(f"{kind}_lines")
        assert lines == sum(others.values()), kind


def mrconso(
    cui: str, text: str, lat: str = "ENG", best: str = "P|PF|Y", suppress: str = "N"
) -> str:
    ts, stt, preferred = best.split("|")
    return f"{cui}|{lat}|{ts}|L1|{stt}|S1|{preferred}|A1||||SRC|PT|1|{text}|0|{suppress}||"


def mrrel(cui1: str, rel: str, cui2: str, rela: str = "", suppress: str = "N") -> str:
    return f"{cui1}|A1|AUI|{rel}|{cui2}|A2|AUI|{rela}|R1||SRC|SRC||Y|{suppress}||"


@pytest.fixture
def meta(tmp_path: Path) -> Path:
    """A META folder, small and with every flaw that is counted."""
    names = [
        mrconso("C3", "A fibrillation of the atria", best="P|VO|Y"),
        mrconso("C3", "AF", best="S|PF|Y"),
        mrconso("C3", "Atrial fibrillation", best="P|PF|Y"),
        mrconso("C3", "Atrial Fibrillation", best="P|PF|N"),
        mrconso("C3", "Fibrilación auricular", lat="SPA"),
        mrconso("C1", "Arrhythmia", suppress="O"),
        mrconso("C1", "Arrhythmia, cardiac", best="S|VO|N"),
        mrconso("C1", "Arrhythmia of the heart", best="S|VO|N"),
        mrconso("C2", "A warfarin", best="P|VO|Y"),
        mrconso("C2", "Warfarin", best="P|PF|N"),
        mrconso("C4", "Solo en español", lat="SPA"),
        mrconso("C5", "Old name", suppress="Y"),
        "C6|ENG|P|L1",
    ]
    types = [
        *("C3|T047|B2|Disease or Syndrome|AT1|256|", "C3|T033|A2|Finding|AT2|256|"),
        *("C2|T121|A1|Pharmacologic Substance|AT3||", "C9|T047|B2|Disease or Syndrome|AT4||", "C1"),
    ]
    relations = [
        mrrel("C1", "CHD", "C3", "isa"),
        mrrel("C3", "PAR", "C1", "inverse_isa"),
        mrrel("C3", "RO", "C2"),
        mrrel("C3", "RO", "C2"),
        mrrel("C3", "SY", "C3"),
        mrrel("C1", "XR", "C2"),
        mrrel("C1", "RO", "C2", "may_treat", suppress="O"),
        mrrel("C1", "RO", "C4", "may_treat"),
        mrrel("", "RO", "C4", "may_treat"),
        "C1|A1",
    ]
    folder = tmp_path / "META"
    folder.mkdir()
    for name, lines in (("MRCONSO", names), ("MRSTY", types), ("MRREL", relations)):
        (folder / f"{name}.RRF").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_umls_names_types_and_direction(meta: Path, tmp_path: Path) -> None:
    counts = build_umls(meta, tmp_path / "knowledge")
    assert counts == {
        **{"concepts_lines": 13, "concepts": 3, "concepts_further": 5, "concepts_suppressed": 2},
        **{"concepts_not_english": 2, "concepts_malformed": 1},
        **{"types_lines": 5, "types": 2, "types_further": 1, "types_unknown": 1},
        "types_malformed": 1,
        **{"relations_lines": 10, "relations": 3, "relations_duplicate": 1, "relations_self": 1},
        **{"relations_not_related": 1, "relations_suppressed": 1, "relations_unknown": 1},
        "relations_malformed": 2,
    }
    assert_balanced(counts)
    opened = Knowledge(tmp_path / "knowledge")
    names = {"C1": "Arrhythmia of the heart", "C2": "Warfarin", "C3": "Atrial fibrillation"}
    assert {cui: opened.name(cui) for cui in names} == names
    assert [cui in opened for cui in ("C4", "C5", "C6")] == [False, False, False]
    # MRREL says what the second concept is to the first: C3 isa C1, and C2 has RO to C3
    assert opened.path("C3", "C1", ANY) == [Hop("C3", "isa", "C1", "SRC", inverse=False)]
    assert opened.path("C1", "C3", ANY) == [Hop("C1", "inverse_isa", "C3", "SRC", inverse=False)]
    assert opened.path("C3", "C1", MEANT) == [Hop("C3", "isa", "C1", "SRC", inverse=False)]
    assert opened.path("C1", "C3", MEANT) == [Hop("C1", "isa", "C3", "SRC", inverse=True)]
    assert opened.path("C1", "C2", MEANT) is None  # the meaning of RO is not known
    assert opened.path("C1", "C2", ANY)[1] == Hop("C3", "RO", "C2", "SRC", inverse=True)
    table = pl.read_ipc(tmp_path / "knowledge" / "concepts.arrow")
    assert table.to_dicts()[1:] == [
        {"concept_id": "C2", "name": "Warfarin", "semantic_type": "Pharmacologic Substance"},
        {"concept_id": "C3", "name": "Atrial fibrillation", "semantic_type": "Finding"},
    ]


def test_umls_without_relations(meta: Path, tmp_path: Path) -> None:
    (meta / "MRREL.RRF").unlink()
    counts = build_umls(meta, tmp_path / "knowledge")
    assert (counts["concepts"], counts["relations"]) == (3, 0)
    opened = Knowledge(tmp_path / "knowledge")
    assert opened.path("C1", "C3", ANY) is None and opened.path("C1", "C1", ANY) == []


def test_faults_of_the_user_are_one_line(meta: Path, tmp_path: Path) -> None:
    good = {
        "concepts.dictionary": f"{HEADER}\nA\talpha\tkind\tX\t\t\n",
        "concepts.relations": "head\trelation\ttail\tsource\n",
    }
    for setting, content, remedy in (
        ("concepts.dictionary", None, "there is no file"),
        ("concepts.dictionary", b"", "there is no concept_id, name, semantic_type"),
        ("concepts.dictionary", HEADER.encode(), "none of its lines can be used"),
        ("concepts.dictionary", NO_GZIP, "the file is damaged"),
        ("concepts.relations", None, "there is no file"),
        ("concepts.relations", b"head\ttail\n", "there is no relation, source"),
    ):
        paths = []
        for name, text in good.items():
            data = content if name == setting else text.encode()
            path = tmp_path / f"{name}.tsv{'.gz' if data is NO_GZIP else ''}"
            path.unlink(missing_ok=True)
            if data is not None:
                path.write_bytes(data)
            paths.append(path)
        with pytest.raises(UserError, match=rf"^{setting}=.*{remedy}[^\n]*$"):
            build_open(*paths, tmp_path / "knowledge")
    (meta / "MRSTY.RRF").unlink()
    with pytest.raises(UserError, match=r"^concepts.folder=.*MRSTY.RRF"):
        build_umls(meta, tmp_path / "knowledge")
    assert not (tmp_path / "knowledge").exists()


def test_a_damaged_table_in_mid_file(tmp_path: Path) -> None:
    """The header can be read, the rest not: nothing is built, what was there stays."""
    opened = knowledge(tmp_path, ["A"], [])
    rows = "\n".join(f"A{number}\tname {random.random()}\tkind\tX\t\t" for number in range(50_000))
    broken = tmp_path / "broken.tsv.gz"
    broken.write_bytes(gzip.compress(f"{HEADER}\n{rows}\n".encode())[:-1000])
    with pytest.raises(UserError, match=r"^concepts.dictionary=.*the file is damaged"):
        build_open(broken, tmp_path / "relations.tsv", tmp_path / "knowledge")
    assert "A" in opened and "A" in Knowledge(tmp_path / "knowledge")
    assert not list(tmp_path.glob(".*partial*"))


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no meta\.json"):
        Knowledge(tmp_path)
    knowledge(tmp_path, ["A"], [])
    meta = tmp_path / "knowledge" / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"format": 99}))
    with pytest.raises(UserError, match="format 99, this version reads 1: remove"):
        Knowledge(tmp_path / "knowledge")


def test_arrays_are_mapped_and_small(tmp_path: Path) -> None:
    """Two entries a fact; numbers take the bytes they need; nothing is read when opening."""
    ids = [f"C{number}" for number in range(300)]
    opened = knowledge(tmp_path, ids, [(a, "r", b, "X") for a, b in pairwise(ids)])
    arrays = {path.stem: np.load(path) for path in (tmp_path / "knowledge").glob("*.npy")}
    assert {name: (len(array), array.dtype.name) for name, array in arrays.items()} == {
        "starts": (301, "int64"),
        "neighbours": (598, "int32"),
        "kinds": (598, "uint8"),
        "degrees": (300, "int32"),
    }
    assert isinstance(opened._neighbours.base, np.memmap)
    before = pa.total_allocated_bytes()
    Knowledge(tmp_path / "knowledge")
    assert pa.total_allocated_bytes() == before


def test_open_data(tmp_path: Path) -> None:
    """The whole open dictionary: in seconds, balanced, and a drug leads to its disease."""
    shared = shared_folder()
    if shared is None:
        pytest.skip("no open data: set EHRR1_SHARED to a folder with data/concepts")
    data = shared / "data" / "concepts"
    counts = build_open(data / "concepts.tsv.gz", data / "relations.tsv.gz", tmp_path / "knowledge")
    assert_balanced(counts)
    assert counts["concepts"] > 200_000 and counts["relations"] > 180_000
    opened = Knowledge(tmp_path / "knowledge")
    path = opened.path("RXNORM:6809", "ICD10CM:E11", ANY)
    assert opened.path("RXNORM:6809", "ICD10CM:E11", MEANT) == path
    assert path is not None
    read = [opened.name(hop.head) for hop in path], [hop.relation for hop in path]
    assert (opened.name("RXNORM:6809"), read) == (
        "Metformin",
        (
            ["Diabetes Mellitus, Type 2", "type 2 diabetes mellitus", "Type 2 diabetes mellitus"],
            ["may_treat", "same_as", "same_as"],
        ),
    )
