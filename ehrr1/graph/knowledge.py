"""Search a knowledge base of concepts and relations for shortest paths.

The knowledge base is a folder of memory-mapped arrays, written by `ehrr1.graph.knowledge_build`. It
opens at once whatever its size, processes share its pages, and a search reads only the entries that
it visits.

    concepts.arrow   concept_id, name, semantic_type; sorted by concept_id, one record batch
    starts.npy       [concepts + 1] index of the first entry of each concept
    neighbours.npy   [entries] number of the neighbouring concept
    kinds.npy        [entries] fact: pair, or pair + number of pairs if the fact runs backwards
    degrees.npy      [concepts] number of distinct neighbours of each concept
    meta.json        format, pairs ([relation, source], sorted), counts

A concept's number is its position among the sorted ids. Each fact has two entries, one at each of
its concepts. The entries of a concept are sorted by neighbour, then by kind: facts in the direction
of the entry come first, then the order is by relation and source.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from ehrr1.damage import reading
from ehrr1.errors import UserError
from ehrr1.files import read_json
from ehrr1.graph.path_search import (
    ANY_PATH,
    CLASS,
    FACT,
    SAME,
    SENTENCE,
    UNUSABLE,
    Edges,
    Limits,
    Numbers,
    sentence_label,
    shortest,
)
from ehrr1.graph.relation_kinds import RELATIONS, is_same
from ehrr1.records.reading import READ_ERRORS

FORMAT = 1
"""Version of the folder's layout."""

LEVELS = 8
"""Number of levels of narrower concepts that are counted."""


class Hop(NamedTuple):
    """One step of a path, from the concept `tail` to the concept `head`.

    inverse: True if the fact runs against the step, that is, it reads "head relation tail" and not
    "tail relation head".
    """

    tail: str
    relation: str
    head: str
    source: str
    inverse: bool

    def turned(self) -> "Hop":
        """Return the step from `head` to `tail` by the same fact."""
        return Hop(self.head, self.relation, self.tail, self.source, not self.inverse)


@dataclass(frozen=True, slots=True)
class PathRule:
    """The paths that a search may return."""

    max_hops: int
    """Maximum number of relations on a path."""
    max_degree: int
    """Maximum number of distinct neighbours, by any relation, of an inner concept of a path.

    The two ends of a path may have more.
    """
    relations: tuple[str, ...] | None
    """Relation types that a path may use, in either direction; None for all."""
    meaningful: bool = False
    """Return only paths that form a sentence (see `ehrr1.graph.relation_kinds`)."""
    max_narrower: int = 250
    """Maximum number of narrower concepts of a concept on a meaningful path, ends included."""


class Knowledge:
    """A knowledge base, opened from its folder."""

    def __init__(self, folder: Path):
        """Map the folder into memory.

        Raises UserError if the folder holds no knowledge base or one of another format version.
        """
        meta = _read_meta(folder)
        concepts = _mapped_batch(folder / "concepts.arrow")
        self._ids, self._names = concepts.column("concept_id"), concepts.column("name")
        self._starts = _mapped(folder / "starts.npy")
        self._neighbours = _mapped(folder / "neighbours.npy")
        self._kinds = _mapped(folder / "kinds.npy")
        self._degrees = _mapped(folder / "degrees.npy")
        self._pairs: list[tuple[str, str]] = [tuple(pair) for pair in meta["pairs"]]
        self._too_broad: dict[int, NDArray[np.bool_]] = {}
        self._rules: dict[PathRule, tuple[Edges, Limits]] = {}

    def __contains__(self, concept_id: str) -> bool:
        return self._number(concept_id) is not None

    def name(self, concept_id: str) -> str:
        """Return the preferred name of a concept; raises KeyError for an unknown id."""
        number = self._number(concept_id)
        if number is None:
            raise KeyError(concept_id)
        return self._names[number].as_py()

    def path(self, start: str, end: str, rule: PathRule) -> list[Hop] | None:
        """Return a shortest path between two concepts.

        The path is [] if start is end, and None if no path exists or an id is unknown. Of several
        shortest paths it is the one whose sequence of concept ids, from start to end, is smallest.
        Of several facts between two concepts it uses the first one: facts along the path come
        before inverse ones, then the order is by relation and source. The result depends on nothing
        else.

        A meaningful path is read from start to end or, if that path is shorter, from end to start
        (the sequence of ids is then smallest from end to start). It is [] as well if all of its
        steps are between equal concepts.

        Raises UserError if the rule names a relation that the knowledge base does not have, or if
        no relation has a meaning and paths must have one.
        """
        first, last = self._number(start), self._number(end)
        if first is None or last is None:
            return None
        if first == last:
            return []
        edges, limits = self._prepared(rule)
        if rule.meaningful and self._generic(rule)[[first, last]].any():
            return None
        steps = shortest(edges, limits, first, last, rule.max_hops)
        hops = None if steps is None else [self._hop(*step) for step in steps]
        if rule.meaningful:
            most = rule.max_hops if hops is None else len(hops) - 1
            back = shortest(edges, limits, last, first, most)
            hops = hops if back is None else [self._hop(*step).turned() for step in back[::-1]]
            return [] if hops and all(is_same(hop.relation) for hop in hops) else hops
        return hops

    def _number(self, concept_id: str) -> int | None:
        """Return the position of an id among the sorted ids, found by bisection, or None."""
        low, high = 0, len(self._ids)
        while low < high:
            middle = (low + high) // 2
            if self._ids[middle].as_py() < concept_id:
                low = middle + 1
            else:
                high = middle
        found = low < len(self._ids) and self._ids[low].as_py() == concept_id
        return low if found else None

    def _prepared(self, rule: PathRule) -> tuple[Edges, Limits]:
        """Return the steps that a rule allows and the concepts that it excludes, made once."""
        if rule not in self._rules:
            labels = self._labels(rule)
            grammar = SENTENCE if rule.meaningful else ANY_PATH
            edges = Edges(self._starts, self._neighbours, self._kinds, labels, grammar)
            blocked, ambiguous = self._degrees > rule.max_degree, None
            if rule.meaningful:
                blocked, ambiguous = blocked | self._generic(rule), self._ambiguous()
            self._rules[rule] = edges, Limits(blocked, ambiguous)
        return self._rules[rule]

    def _labels(self, rule: PathRule) -> Numbers:
        """Return the label of each kind of entry [2 * pairs] for the rule's grammar."""
        known = {relation for relation, _ in self._pairs}
        if unknown := sorted(set(rule.relations or ()) - known):
            raise UserError(
                f"graph.relations={list(rule.relations or ())}: the knowledge base has no "
                f"{', '.join(unknown)}; it has {', '.join(sorted(known))}"
            )
        usable = known if rule.relations is None else set(rule.relations)
        if rule.meaningful and usable and not usable & set(RELATIONS):
            raise UserError(
                f"graph.path_rule=meaningful: the meaning of no relation type is known "
                f"({', '.join(sorted(usable))}); set graph.path_rule=any"
            )
        kinds = [(relation, inverse) for inverse in (False, True) for relation, _ in self._pairs]
        label = sentence_label if rule.meaningful else lambda relation, inverse: FACT
        return np.array(
            [label(*kind) if kind[0] in usable else UNUSABLE for kind in kinds], np.intp
        )

    def _generic(self, rule: PathRule) -> NDArray[np.bool_]:
        """Return the mask [concepts] of classes with too many narrower concepts."""
        if rule.max_narrower not in self._too_broad:
            self._too_broad[rule.max_narrower] = self._narrower() > rule.max_narrower
        return self._too_broad[rule.max_narrower]

    def _narrower(self) -> NDArray[Any]:
        """Return the number of narrower concepts of each concept [concepts].

        They are those from which at most LEVELS steps to a broader concept lead there. A concept
        counts once for each way.
        """
        children, parents = self._entries(CLASS)
        found: NDArray[Any] = np.zeros(len(self._degrees))
        for _ in range(LEVELS):
            found = np.bincount(parents, 1 + found[children], minlength=len(found))
        return found

    def _ambiguous(self) -> NDArray[np.bool_]:
        """Return the mask [concepts] of concepts with several equal concepts in one vocabulary."""
        owners, equals = self._entries(SAME)
        pairs = pl.DataFrame(
            {
                "owner": owners,
                "equal": equals,
                "vocabulary": pl.Series(self._ids.take(pa.array(equals))).str.extract("^([^:]*):"),
            },
            schema_overrides={"vocabulary": pl.String},
        )
        several = pairs.unique().filter(pl.len().over("owner", "vocabulary") > 1)["owner"]
        mask = np.zeros(len(self._degrees), bool)
        mask[several.to_numpy()] = True
        return mask

    def _entries(self, label: int) -> tuple[Numbers, Numbers]:
        """Return the concepts and the neighbours of all entries with this label in a sentence."""
        kinds = [(relation, inverse) for inverse in (False, True) for relation, _ in self._pairs]
        wanted = np.array([sentence_label(*kind) == label for kind in kinds], bool)
        entries = np.flatnonzero(wanted[self._kinds]) if kinds else np.zeros(0, np.intp)
        owners = np.searchsorted(self._starts, entries, side="right") - 1
        return owners, self._neighbours[entries]

    def _hop(self, tail: int, kind: int, head: int) -> Hop:
        inverse, pair = divmod(kind, len(self._pairs))
        relation, source = self._pairs[pair]
        names = self._ids[tail].as_py(), self._ids[head].as_py()
        return Hop(names[0], relation, names[1], source, bool(inverse))


def _read_meta(folder: Path) -> dict:
    path = folder / "meta.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no knowledge base (no meta.json): build it again")
    meta = read_json(path)
    if meta["format"] != FORMAT:
        raise UserError(
            f"{folder} holds a knowledge base of format {meta['format']}, this version reads "
            f"{FORMAT}: remove the folder and build it again"
        )
    return meta


def _mapped(path: Path) -> Numbers:
    """Return an array that stays on disk and is read where it is accessed.

    It is a plain array view because slices of a `np.memmap` are slow.
    """
    with _reading(path):
        return np.asarray(np.load(path, mmap_mode="r"))


def _mapped_batch(path: Path) -> pa.RecordBatch:
    with _reading(path):
        return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)


def _reading(path: Path) -> AbstractContextManager[None]:
    """Return a context that raises DamagedError for a file of the base that is not whole."""
    remedy = f"delete the folder {path.parent}: it is built again"
    return reading(path, *READ_ERRORS, ValueError, remedy=remedy)
