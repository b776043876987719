"""Measure building, opening and searching a knowledge base of UMLS's size.

    python -m benchmarks.knowledge [--concepts 3000000] [--relations 20000000] [--searches 2000]
                                   [--folder DIR] [--json FILE]

Makes RRF files of that size in DIR (a temporary folder by default; about 4 GB with what is built,
removed at the end), then builds from them in one process and opens and searches in another: the
seconds, and the peak resident memory of each process as the kernel counts it, mapped files
included. The files lie in the page cache, as they were just written.

The graph: one end of each relation is any concept, the other falls on few: the concept of rank r
has a share of about r**-0.8, so that hundreds of hubs have more than 1,000 neighbours, the largest
a million (half of the concepts have 9 or fewer). Relations know no neighbourhoods, unlike real
terminologies: the concepts around a pair grow as fast as they can. Of the relations a hundredth
each is suppressed, repeats another, or leads to an unknown concept; concepts have 2 names on
average, a fifth of all in another language.

Searches go over at most 4 relations through concepts with at most 1,000 neighbours (the defaults of
conf/graph.yaml): random pairs, and both ends of walks of 4 relations, which have a path.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl

from benchmarks.measure import machine, markdown, report, run
from ehrr1.graph.knowledge import Knowledge, PathRule
from ehrr1.graph.knowledge_build import build_umls

CHUNK = 1_000_000
RULE = PathRule(max_hops=4, max_degree=1000, relations=None)
RELATIONS = 400
SOURCES = 60
TARGETS = {
    "build, seconds": 300,
    "build, peak MB": 3000,
    "open, ms": 1000,
    "search, peak MB": 3000,
    "paths of at most 4 hops, median ms": 10,
}


def main() -> None:
    given = _arguments()
    if given.part:
        figures = {"make": _make, "build": _build, "search": _search}[given.part](given)
        (given.folder / f"{given.part}.json").write_text(json.dumps(figures), encoding="utf-8")
        return
    figures = {"machine": machine()}
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        folder = Path(temporary)
        for part in ("make", "build", "search"):
            figures[part] = _in_process(part, folder, given)
        figures["input_mb"] = _size(folder / "META")
        figures["knowledge_mb"] = _size(folder / "knowledge")
    report(given.json, _table(figures), figures)


def _in_process(part: str, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Run a part in a process of its own: what it found, and what it cost."""
    print(f"{time.strftime('%H:%M:%S')} {part}", file=sys.stderr, flush=True)
    command: list[str | Path] = [sys.executable, "-m", "benchmarks.knowledge", "--part", part]
    command += ["--folder", folder, "--concepts", str(given.concepts)]
    command += ["--relations", str(given.relations), "--searches", str(given.searches)]
    cost = run(command, folder / "log", {"OMP_NUM_THREADS": "1"})
    found = json.loads((folder / f"{part}.json").read_text(encoding="utf-8"))
    return found | {"process_seconds": cost.seconds, "peak_mb": cost.peak_mb}


def _arguments() -> argparse.Namespace:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--concepts", type=int, default=3_000_000)
    found.add_argument("--relations", type=int, default=20_000_000)
    found.add_argument("--searches", type=int, default=2_000, help="pairs of each kind")
    found.add_argument("--folder", type=Path, help="where files are written, and removed")
    found.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    found.add_argument("--part", choices=("make", "build", "search"), help=argparse.SUPPRESS)
    return found.parse_args()


def _make(given: argparse.Namespace) -> dict[str, Any]:
    """Write META and the pairs to search."""
    generator = np.random.default_rng(7)
    meta = given.folder / "META"
    meta.mkdir()
    _write_names(meta, given.concepts, generator)
    heads, tails = _write_relations(meta, given.concepts, given.relations, generator)
    pairs = {
        "random": generator.integers(0, given.concepts, (given.searches, 2)).tolist(),
        "walk": _walks(heads, tails, given.concepts, given.searches, generator),
    }
    (given.folder / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    degrees = np.bincount(np.concatenate([heads, tails]), minlength=given.concepts)
    return {
        "median_degree": int(np.median(degrees)),
        "largest_degree": int(degrees.max()),
        "hubs": int((degrees > RULE.max_degree).sum()),
    }


def _cui(numbers: pl.Expr) -> pl.Expr:
    return pl.concat_str(pl.lit("C"), numbers.cast(pl.String).str.zfill(7))


def _append(frame: pl.DataFrame, path: Path) -> None:
    with path.open("ab") as file:
        frame.with_columns(end=pl.lit("")).write_csv(
            file, separator="|", include_header=False, quote_style="never"
        )


def _write_names(meta: Path, concepts: int, generator: np.random.Generator) -> None:
    """MRCONSO.RRF and MRSTY.RRF, sorted by concept as UMLS has them."""
    for low in range(0, concepts, CHUNK):
        number = np.arange(low, min(low + CHUNK, concepts))
        atoms = np.repeat(number, generator.geometric(0.5, len(number)))
        first = np.diff(atoms, prepend=-1) > 0
        english = first | (generator.random(len(atoms)) < 0.6)
        frame = pl.DataFrame({"n": atoms, "first": first, "english": english})
        blank, main = pl.lit(""), pl.col("first")
        letter = pl.col("n").hash(7).cast(pl.String)
        columns = {
            "CUI": _cui(pl.col("n")),
            "LAT": pl.when("english").then(pl.lit("ENG")).otherwise(pl.lit("SPA")),
            "TS": pl.when(main).then(pl.lit("P")).otherwise(pl.lit("S")),
            "LUI": pl.concat_str(pl.lit("L"), letter.str.slice(0, 7)),
            "STT": pl.when(main).then(pl.lit("PF")).otherwise(pl.lit("VO")),
            "SUI": pl.concat_str(pl.lit("S"), letter.str.slice(0, 8)),
            "ISPREF": pl.when(main).then(pl.lit("Y")).otherwise(pl.lit("N")),
            "AUI": pl.concat_str(pl.lit("A"), letter.str.slice(0, 8)),
            **dict.fromkeys(("SAUI", "SCUI", "SDUI"), blank),
            "SAB": pl.lit("SNOMEDCT_US"),
            "TTY": pl.lit("PT"),
            "CODE": letter.str.slice(0, 9),
            "STR": pl.concat_str(pl.lit("a clinical finding of the kind "), letter),
            "SRL": pl.lit("9"),
            "SUPPRESS": pl.lit("N"),
            "CVF": pl.lit("256"),
        }
        _append(frame.select(**columns), meta / "MRCONSO.RRF")
        types = pl.DataFrame({"n": number}).select(
            CUI=_cui(pl.col("n")),
            TUI=pl.lit("T047"),
            STN=pl.lit("B2.2.1.2.1"),
            STY=pl.lit("Disease or Syndrome"),
            ATUI=pl.lit("AT01"),
            CVF=blank,
        )
        _append(types, meta / "MRSTY.RRF")


def _write_relations(
    meta: Path, concepts: int, relations: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """MRREL.RRF; returns the concepts at both ends of those that are not suppressed."""
    place = generator.permutation(concepts).astype(np.int32)
    ends = []
    for low in range(0, relations, CHUNK):
        size = min(CHUNK, relations - low)
        head = generator.integers(0, concepts, size).astype(np.int32)
        tail = place[(concepts * generator.random(size) ** 5).astype(np.int64)]
        chance = generator.random(size)
        again = chance < 0.01
        head[1:][again[1:]], tail[1:][again[1:]] = head[:-1][again[1:]], tail[:-1][again[1:]]
        kind = generator.zipf(1.3, size) % RELATIONS
        kind[1:][again[1:]] = kind[:-1][again[1:]]
        suppressed, unknown = chance > 0.99, (chance > 0.98) & (chance <= 0.99)
        _append(_mrrel(head, np.where(unknown, concepts + tail, tail), kind, suppressed),
                meta / "MRREL.RRF")  # fmt: skip
        good = ~suppressed & ~unknown
        ends.append((head[good], tail[good]))
    return np.concatenate([a for a, _ in ends]), np.concatenate([b for _, b in ends])


def _mrrel(
    head: np.ndarray, tail: np.ndarray, kind: np.ndarray, suppressed: np.ndarray
) -> pl.DataFrame:
    frame = pl.DataFrame({"head": head, "tail": tail, "kind": kind, "suppressed": suppressed})
    atom = pl.col("head").hash(3).cast(pl.String)
    source = pl.concat_str(pl.lit("SOURCE"), (pl.col("kind") % SOURCES).cast(pl.String))
    aui = pl.concat_str(pl.lit("A"), atom.str.slice(0, 8))
    return frame.select(
        CUI1=_cui(pl.col("tail")),
        AUI1=aui,
        STYPE1=pl.lit("AUI"),
        REL=pl.lit("RO"),
        CUI2=_cui(pl.col("head")),
        AUI2=aui,
        STYPE2=pl.lit("AUI"),
        RELA=pl.concat_str(pl.lit("has_relation_"), pl.col("kind").cast(pl.String)),
        RUI=pl.concat_str(pl.lit("R"), atom.str.slice(0, 9)),
        SRUI=pl.lit(""),
        SAB=source,
        SL=source,
        RG=pl.lit(""),
        DIR=pl.lit("Y"),
        SUPPRESS=pl.when("suppressed").then(pl.lit("O")).otherwise(pl.lit("N")),
        CVF=pl.lit(""),
    )


def _walks(
    heads: np.ndarray, tails: np.ndarray, concepts: int, number: int, generator: np.random.Generator
) -> list[list[int]]:
    """Both ends of random walks of 4 relations that pass through no hub."""
    nodes, others = np.concatenate([heads, tails]), np.concatenate([tails, heads])
    others = others[np.argsort(nodes, kind="stable")]
    size = np.bincount(nodes, minlength=concepts)
    begin = np.cumsum(size) - size
    found: list[list[int]] = []
    while len(found) < number:
        walk = [int(generator.integers(concepts))]
        while (
            len(walk) < 5
            and size[walk[-1]] > 0
            and (len(walk) == 1 or size[walk[-1]] <= RULE.max_degree)
        ):
            walk.append(int(others[begin[walk[-1]] + generator.integers(size[walk[-1]])]))
        if len(walk) == 5 and walk[0] != walk[-1]:
            found.append([walk[0], walk[-1]])
    return found


def _build(given: argparse.Namespace) -> dict[str, Any]:
    began = time.perf_counter()
    counts = build_umls(given.folder / "META", given.folder / "knowledge")
    seconds = round(time.perf_counter() - began, 1)
    return {"seconds": seconds, "cpu_seconds": round(time.process_time(), 1), "counts": counts}


def _search(given: argparse.Namespace) -> dict[str, Any]:
    folder = given.folder
    began = time.perf_counter()
    knowledge = Knowledge(folder / "knowledge")
    opened = (time.perf_counter() - began) * 1e3
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    types = tuple(f"has_relation_{kind}" for kind in range(1, 40))
    filtered = PathRule(RULE.max_hops, RULE.max_degree, types)
    pairs = json.loads((folder / "pairs.json").read_text(encoding="utf-8"))
    return {
        "open_ms": round(opened, 1),
        "open_peak_mb": round(before, 1),
        "searches": {
            "random pairs": _timed(knowledge, pairs["random"], RULE),
            "ends of walks": _timed(knowledge, pairs["walk"], RULE),
            f"ends of walks, {len(types)} of {RELATIONS} relation types": _timed(
                knowledge, pairs["walk"], filtered
            ),
        },
    }


def _timed(
    knowledge: Knowledge, pairs: list[list[int]], rule: PathRule
) -> dict[str, dict[str, float]]:
    """Milliseconds of the searches that found a path, and of those that found none."""
    times: dict[str, list[float]] = {"path": [], "none": []}
    hops = []
    for start, end in pairs:
        began = time.perf_counter()
        path = knowledge.path(f"C{start:07d}", f"C{end:07d}", rule)
        times["none" if path is None else "path"].append((time.perf_counter() - began) * 1e3)
        hops += [] if path is None else [len(path)]
    found = {name: _spread(values) for name, values in times.items() if values}
    if hops:
        found["path"]["mean_hops"] = round(float(np.mean(hops)), 2)
    return found


def _spread(times: list[float]) -> dict[str, float]:
    return {
        "number": len(times),
        "median": round(median(times), 2),
        "p95": round(float(np.percentile(times, 95)), 2),
        "max": round(max(times), 2),
    }


def _size(folder: Path) -> float:
    return round(sum(path.stat().st_size for path in folder.iterdir()) / 1e6, 1)


def _table(figures: dict[str, Any]) -> str:
    build, search = figures["build"], figures["search"]
    times = search["searches"]
    values = {
        "build, seconds": build["seconds"],
        "build, seconds of all cores": build["cpu_seconds"],
        "build, peak MB": build["peak_mb"],
        "open, ms": search["open_ms"],
        "search, peak MB": search["peak_mb"],
        "paths of at most 4 hops, median ms": times["ends of walks"]["path"]["median"],
        "RRF files, MB": figures["input_mb"],
        "knowledge base on disk, MB": figures["knowledge_mb"],
    }
    rows = [[name, str(value), str(TARGETS.get(name, ""))] for name, value in values.items()]
    spread = [
        [pairs, outcome, *(str(value.get(key, "")) for key in
                           ("number", "mean_hops", "median", "p95", "max"))]
        for pairs, outcomes in times.items()
        for outcome, value in outcomes.items()
    ]  # fmt: skip
    columns = ["searches", "found", "number", "mean hops", "median ms", "p95 ms", "max ms"]
    counts = "\n".join(f"{name} {number:,}" for name, number in sorted(build["counts"].items()))
    return "\n\n".join(
        [markdown(["", "measured", "at most"], rows), markdown(columns, spread), counts]
    )


if __name__ == "__main__":
    main()
