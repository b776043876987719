"""Build a knowledge base from two open tables or from the user's own UMLS files.

Files are read as lines and split here, so that each line is accounted for: lines read = lines kept
+ lines left out, by reason. The result depends on the set of lines, not on their order. Batches of
lines are converted to numbers as they are read. Text is held once per concept, never per relation.

UMLS: the columns are those of the UMLS Reference Manual, chapter 3 (Rich Release Format). MRREL's
REL and RELA are the "relationship of second concept or atom to first concept or atom", and NLM's
source pages say that its lines "are read from right to left". Their sample C0020268
(hydrocortisone) | RO | C0689115 (hydrocortisone 20 mg oral tablet) | has_ingredient is the fact
"C0689115 has_ingredient C0020268": CUI2 RELA CUI1.
"""

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from ehrr1.errors import UserError
from ehrr1.files import replacing, write_json
from ehrr1.graph.knowledge import FORMAT
from ehrr1.graph.path_search import Numbers, distinct
from ehrr1.progress import track

BATCH = 1_000_000
"""Number of lines read at a time."""

BLOCK = 4_000_000
"""Number of entries of the adjacency sorted at a time."""

Counts = dict[str, int]


class Facts(NamedTuple):
    """Facts as numbers: "heads[i] pairs[codes[i]] tails[i]", in any order, with repetitions."""

    heads: Numbers
    tails: Numbers
    codes: Numbers
    pairs: list[tuple[str, str]]
    """(relation, source) pairs, sorted."""


class Entries(NamedTuple):
    """The adjacency of all concepts, with the arrays of the knowledge base's folder."""

    starts: Numbers
    neighbours: Numbers
    kinds: Numbers
    degrees: Numbers


CONCEPT_COLUMNS = ("concept_id", "name", "semantic_type")
RELATION_COLUMNS = ("head", "relation", "tail", "source")
MRCONSO = {"CUI": 0, "LAT": 1, "TS": 2, "STT": 4, "ISPREF": 6, "STR": 14, "SUPPRESS": 16}
MRSTY = {"CUI": 0, "TUI": 1, "STY": 3}
MRREL = {"CUI1": 0, "REL": 3, "CUI2": 4, "RELA": 7, "SAB": 10, "SUPPRESS": 14}
SUPPRESSED = ("O", "E", "Y")
"""Values of SUPPRESS for suppressed rows; N is not suppressed.

O: obsolete; E: suppressed by an editor; Y: suppressed by the source's term type.
"""


def build_open(dictionary: Path, relations: Path, folder: Path) -> Counts:
    """Build a knowledge base from tab-separated tables (.tsv or .tsv.gz).

    Columns are found by the header. The dictionary has concept_id, name, semantic_type; the
    relations have head, relation, tail, source (the fact reads "head relation tail").

    Returns the number of lines read (`concepts_lines`, `relations_lines`), kept (`concepts`,
    `relations`) and left out by reason. Concepts are left out as malformed (wrong number of fields,
    or no id), unnamed, or duplicate (the id has a smaller name). Relations are left out as
    malformed, self (head is tail), unknown (an id is not in the dictionary), or duplicate. Reasons
    that do not occur are not listed, except duplicate. Raises UserError for a missing or damaged
    file.
    """
    concepts, counts = _open_concepts(dictionary)
    setting = f"concepts.relations={relations}"
    rows = _table(relations, RELATION_COLUMNS, setting).select(
        "head",
        "tail",
        pair=pl.concat_str("relation", "source", separator="\t"),
        reason=_first(malformed=_incomplete("head", "relation", "tail")),
    )
    facts = _facts(rows, concepts["concept_id"], counts, setting)
    return _write(folder, concepts, facts, counts)


def build_umls(meta: Path, folder: Path) -> Counts:
    """Build a knowledge base from a UMLS META folder.

    It reads MRCONSO.RRF, MRSTY.RRF and, if it exists, MRREL.RRF.

    - A concept's name is its English, unsuppressed atom that ranks first by TS=P, then STT=PF, then
      ISPREF=Y (all three mark the atom that UMLS prefers), then by the name itself. A concept
      without such an atom is left out.
    - Its semantic type is the first by TUI.
    - The relation of a fact is RELA, or REL if RELA is empty; its source is SAB. Suppressed
      relations and REL=XR ("not related, no mapping") are left out.

    Returns counts as `build_open` does: of atoms (`concepts`; also suppressed, not_english, further
    names), of semantic types (`types`: malformed, further, unknown) and of relations (`relations`;
    also suppressed, not_related). Raises UserError for a missing or damaged file.
    """
    concepts, counts = _umls_concepts(meta)
    types, more = _umls_types(meta)
    concepts = concepts.join(types, on="concept_id", how="left", maintain_order="left")
    typed = concepts["semantic_type"].count()
    counts |= more | {"types": typed, "types_unknown": types.height - typed}
    facts = _umls_facts(meta, concepts["concept_id"], counts)
    return _write(folder, concepts.fill_null(""), facts, counts)


def _open_concepts(path: Path) -> tuple[pl.DataFrame, Counts]:
    setting = f"concepts.dictionary={path}"
    rows = _table(path, CONCEPT_COLUMNS, setting).select(
        "concept_id",
        value=pl.concat_str("name", "semantic_type", separator="\t"),
        reason=_first(malformed=_incomplete("concept_id"), unnamed=pl.col("name") == ""),
    )
    found, counts = _one_each(rows, "concepts", "duplicate", setting)
    part = pl.col("value").str.split_exact("\t", 1).struct
    columns = {"name": part["field_0"], "semantic_type": part["field_1"]}
    return found.select("concept_id", **columns), counts


def _umls_concepts(meta: Path) -> tuple[pl.DataFrame, Counts]:
    setting = f"concepts.folder={meta}"
    rank = pl.lit(0, pl.UInt8)
    for column, best, weight in (("TS", "P", 4), ("STT", "PF", 2), ("ISPREF", "Y", 1)):
        rank += (pl.col(column) != best).cast(pl.UInt8) * weight
    rows = _rrf(meta / "MRCONSO.RRF", MRCONSO, 18, setting).select(
        concept_id="CUI",
        value=pl.concat_str(rank, "STR"),  # rank digit, then name: the minimum is best
        reason=_first(
            malformed=_incomplete("CUI", "STR"),
            suppressed=pl.col("SUPPRESS").is_in(SUPPRESSED),
            not_english=pl.col("LAT") != "ENG",
        ),
    )
    found, counts = _one_each(rows, "concepts", "further", setting)
    return found.select("concept_id", name=pl.col("value").str.slice(1)), counts


def _umls_types(meta: Path) -> tuple[pl.DataFrame, Counts]:
    setting = f"concepts.folder={meta}"
    rows = _rrf(meta / "MRSTY.RRF", MRSTY, 6, setting).select(
        concept_id="CUI",
        value=pl.concat_str("TUI", "STY", separator="|"),
        reason=_first(malformed=_incomplete("CUI", "STY")),
    )
    found, counts = _one_each(rows, "types", "further", setting)
    label = pl.col("value").str.split_exact("|", 1).struct["field_1"]
    return found.select("concept_id", semantic_type=label), counts


def _umls_facts(meta: Path, ids: pl.Series, counts: Counts) -> Facts:
    if not (meta / "MRREL.RRF").exists():
        none = np.zeros(0, np.uint32)
        return Facts(none, none, none, [])
    setting = f"concepts.folder={meta}"
    relation = pl.when(pl.col("RELA") != "").then("RELA").otherwise("REL")
    rows = _rrf(meta / "MRREL.RRF", MRREL, 16, setting).select(
        head="CUI2",
        tail="CUI1",
        pair=pl.concat_str(relation, "SAB", separator="\t"),
        reason=_first(
            malformed=_incomplete("CUI1", "CUI2", "REL"),
            suppressed=pl.col("SUPPRESS").is_in(SUPPRESSED),
            not_related=pl.col("REL") == "XR",
        ),
    )
    return _facts(rows, ids, counts, setting)


def _table(path: Path, columns: tuple[str, ...], setting: str) -> pl.LazyFrame:
    """Scan the named columns of a tab-separated file and flag `malformed` lines."""
    _check(path, setting)
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", errors="replace") as file:
            header = file.readline().rstrip("\r\n").split("\t")
    except (OSError, EOFError) as error:
        raise UserError(f"{setting}: the file is damaged ({error}): fetch it again") from error
    missing = [column for column in columns if column not in header]
    if missing:
        raise UserError(
            f"{setting}: its first line must name the columns {', '.join(columns)}, separated by "
            f"tabs; there is no {', '.join(missing)}"
        )
    positions = {column: header.index(column) for column in columns}
    return _fields(_lines(path, skip=1), "\t", positions, len(header))


def _rrf(path: Path, positions: dict[str, int], columns: int, setting: str) -> pl.LazyFrame:
    """Scan the named columns of an RRF file, in which every column ends with a bar."""
    _check(path, setting)
    return _fields(_lines(path, skip=0), "|", positions, columns + 1)


def _check(path: Path, setting: str) -> None:
    if not path.is_file():
        raise UserError(f"{setting}: there is no file {path}: correct the path")


def _lines(path: Path, skip: int) -> pl.LazyFrame:
    """Scan the lines of a plain or gzipped file; invalid UTF-8 is replaced."""
    return pl.scan_csv(
        path,
        separator="\x01",  # does not occur in these files: a line is one field
        quote_char=None,
        has_header=False,
        skip_lines=skip,
        schema={"line": pl.String},
        encoding="utf8-lossy",
        empty_string_is_null=False,
        truncate_ragged_lines=True,
        raise_if_empty=False,
        glob=False,
    )


def _fields(
    lines: pl.LazyFrame, separator: str, positions: dict[str, int], width: int
) -> pl.LazyFrame:
    """Split each line into fields and flag it as `malformed` unless it has `width` fields.

    Missing fields are null.
    """
    field = pl.col("line").str.split_exact(separator, width).struct
    last, beyond = field[f"field_{width - 1}"], field[f"field_{width}"]
    named = {name: field[f"field_{place}"] for name, place in positions.items()}
    return lines.select(**named, malformed=last.is_null() | beyond.is_not_null())


def _incomplete(*needed: str) -> pl.Expr:
    """Return the condition that a line is malformed or lacks one of the `needed` columns."""
    return pl.any_horizontal("malformed", *(pl.col(column) == "" for column in needed))


def _first(**reasons: pl.Expr) -> pl.Expr:
    """Return the first reason that applies for leaving a line out, or "" if the line is kept."""
    found = pl.lit("")
    for name, applies in reversed(reasons.items()):
        found = pl.when(applies).then(pl.lit(name)).otherwise(found)
    return found


def _one_each(
    rows: pl.LazyFrame, kind: str, further: str, setting: str
) -> tuple[pl.DataFrame, Counts]:
    """Return the smallest `value` of each concept_id, sorted by concept_id, and the counts."""
    counts: Counts = {}
    parts = [pl.DataFrame(schema={"concept_id": pl.String, "value": pl.String})]
    smallest = pl.col("value").min()
    kept = 0
    for batch in _kept(rows, kind, counts, setting):
        kept += batch.height
        parts.append(batch.group_by("concept_id").agg(smallest))
    found = pl.concat(parts).group_by("concept_id").agg(smallest).sort("concept_id")
    if found.is_empty():
        raise UserError(f"{setting}: none of its lines can be used ({counts}): is the file right?")
    return found, counts | {kind: found.height, f"{kind}_{further}": kept - found.height}


def _kept(rows: pl.LazyFrame, kind: str, counts: Counts, setting: str) -> Iterator[pl.DataFrame]:
    """Yield batches of the rows without a `reason`, and add the others to the counts by reason."""
    batches = rows.collect_batches(chunk_size=BATCH, maintain_order=False, engine="streaming")
    counts[f"{kind}_lines"] = 0
    try:
        for batch in track(batches, f"{kind}, batches of lines"):
            counts[f"{kind}_lines"] += batch.height
            for reason, number in batch["reason"].value_counts().iter_rows():
                if reason:
                    name = f"{kind}_{reason}"
                    counts[name] = counts.get(name, 0) + number
            yield batch.filter(pl.col("reason") == "").drop("reason")
    except OSError as error:
        raise UserError(f"{setting}: the file is damaged ({error}): fetch it again") from error


def _facts(rows: pl.LazyFrame, ids: pl.Series, counts: Counts, setting: str) -> Facts:
    """Convert ids and (relation, source) pairs to numbers as the lines are read."""
    place = pl.Enum(ids)  # a value's number is its position in `ids`; null: not there
    head, tail = (
        pl.col(end).cast(place, strict=False).to_physical().cast(pl.UInt32)
        for end in ("head", "tail")
    )
    left_out = _first(
        self=pl.col("head") == pl.col("tail"), unknown=head.is_null() | tail.is_null()
    )
    numbered = rows.select(
        head=head,
        tail=tail,
        pair=pl.col("pair").cast(pl.Categorical),
        reason=pl.when(pl.col("reason") != "").then("reason").otherwise(left_out),
    )
    schema = {"head": pl.UInt32, "tail": pl.UInt32, "pair": pl.Categorical}
    parts = [pl.DataFrame(schema=schema), *_kept(numbered, "relations", counts, setting)]
    found = pl.concat(parts)
    codes, pairs = _ranked(found["pair"])
    return Facts(found["head"].to_numpy(), found["tail"].to_numpy(), codes, pairs)


def _ranked(joined: pl.Series) -> tuple[Numbers, list[tuple[str, str]]]:
    """Return each value's index among the sorted distinct pairs, and those pairs."""
    used = joined.unique()
    pairs = [tuple(text.split("\t", 1)) for text in used.cast(pl.String)]
    order = sorted(range(len(pairs)), key=pairs.__getitem__)
    physical = used.to_physical().to_numpy()
    place = np.zeros(int(physical.max(initial=0)) + 1, np.uint32)
    place[physical[order]] = np.arange(len(order))
    return place[joined.to_physical().to_numpy()], [pairs[i] for i in order]


def _write(folder: Path, concepts: pl.DataFrame, facts: Facts, counts: Counts) -> Counts:
    """Write the folder that `Knowledge` opens, atomically."""
    entries = _entries(facts, concepts.height)
    kept = len(entries.neighbours) // 2
    counts |= {"relations": kept, "relations_duplicate": len(facts.heads) - kept}
    with replacing(folder) as temporary:
        temporary.mkdir()
        for name, array in entries._asdict().items():
            np.save(temporary / f"{name}.npy", array)
        (batch,) = concepts.rechunk().to_arrow().combine_chunks().to_batches()
        with pa.ipc.new_file(temporary / "concepts.arrow", batch.schema) as file:
            file.write_batch(batch)
        meta = {"format": FORMAT, "pairs": facts.pairs, "counts": counts}
        write_json(temporary / "meta.json", meta)
    return counts


def _entries(facts: Facts, concepts: int) -> Entries:
    """Sort facts into entries of their heads and, reversed, of their tails, without repetitions.

    It proceeds by blocks of concepts, which limits the memory of each sort.
    """
    kinds = max(2 * len(facts.pairs), 1)
    size = np.bincount(facts.heads, minlength=concepts)
    ends = np.cumsum(size + np.bincount(facts.tails, minlength=concepts))
    widest = (2**64 - 1) // (concepts * kinds)  # concepts per block whose entries fit 64 bits
    blocks, low = [], 0
    while low < concepts:
        read = ends[low - 1] if low else 0
        high = max(int(np.searchsorted(ends, read + BLOCK, "right")), low + 1)
        high = min(high, low + widest, concepts)
        blocks.append(_block(facts, low, high, concepts, kinds))
        low = high
    sizes, neighbours, found, degrees = (np.concatenate(part) for part in zip(*blocks, strict=True))
    return Entries(np.concatenate([[0], np.cumsum(sizes)]), neighbours, found, degrees)


def _block(facts: Facts, low: int, high: int, concepts: int, kinds: int) -> tuple[Numbers, ...]:
    """Return the entries of concepts `low` to `high`: sizes, neighbours, kinds, degrees.

    An entry is encoded as one number, (concept * concepts + neighbour) * kinds + kind, so that one
    sort orders them.
    """
    keys = []
    for nodes, others, backwards in (
        (facts.heads, facts.tails, 0),
        (facts.tails, facts.heads, len(facts.pairs)),
    ):
        here = np.flatnonzero((nodes >= low) & (nodes < high))
        row = nodes[here].astype(np.uint64) - np.uint64(low)
        pair = row * np.uint64(concepts) + others[here]
        keys.append(pair * np.uint64(kinds) + (facts.codes[here] + np.uint64(backwards)))
    pair, kind = np.divmod(distinct(np.concatenate(keys)), np.uint64(kinds))
    row, neighbour = np.divmod(pair, np.uint64(concepts))
    first = np.ones(len(pair), bool)
    first[1:] = pair[1:] != pair[:-1]
    rows = row.astype(np.int64)
    return (
        np.bincount(rows, minlength=high - low),
        neighbour.astype(np.int32),
        kind.astype(np.min_scalar_type(kinds - 1)),
        np.bincount(rows[first], minlength=high - low).astype(np.int32),
    )
