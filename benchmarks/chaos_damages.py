"""Damaged files between stages for `benchmarks.chaos`, many in one process.

A file of a finished run is damaged in a random way and read as a stage reads it: with the run's
manifest, by the check that begins every stage; without one (runs of version 0.1, files of a run
that is not finished), by the reader of its format. Outcomes:

    refused    one line that names the file
    same       the reader finds what was written: nothing that counts was damaged
    unseen     other values without a manifest, which no rule of the format can see
    traceback  any other error, or the end of the process
    accepted   other values that the manifest or a rule must see
"""

import json
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from safetensors.torch import load_file, save_file

from benchmarks.chaos_kills import one_line
from benchmarks.chaos_world import READS, Result, WrongError, apart, arguments_of, forked
from ehrr1.damage import MANIFEST, check, read_manifest
from ehrr1.errors import UserError
from ehrr1.evaluation.predictions import read_predictions
from ehrr1.files import read_json, read_jsonl, read_yaml
from ehrr1.graph.cooccurrence import Cooccurrence
from ehrr1.models.loading import read_whole
from ehrr1.prompts.dataset import read_trees
from ehrr1.prompts.tokenizer import load_tokenizer
from ehrr1.reasoning.ledger import Ledger
from ehrr1.records.openness import FILE
from ehrr1.records.store import Shard
from ehrr1.runs.paths import read_decision, read_inputs
from ehrr1.stages.chains import graph_places
from ehrr1.stages.reason import kept_chains
from ehrr1.tasks.samples import Prepared
from ehrr1.training.checkpoints import last_checkpoint
from ehrr1.training.consolidation import learnt_weights

OUTCOMES = ("refused", "same", "unseen", "traceback", "accepted")
WRONG = ("traceback", "accepted")


class Kind(NamedTuple):
    """A kind of file between stages: where it is, and what a stage reads of it."""

    files: str
    read: Callable[[Path], object]


def _shard(path: Path) -> object:
    shard = Shard(path.parent)
    columns = (shard.subject_id, shard.table, shard.event_time, shard.item, shard.hadm_id)
    values = shard.values(np.arange(len(shard.item)))
    parents = [parent.hash_rows().to_list() for parent in shard.parents.values()]
    return [column.tolist() for column in columns], values, shard.names, shard.patients, parents


def _samples(path: Path) -> object:
    prepared = Prepared(path.parent)
    return prepared.samples(), prepared.splits.rows()


def _weights(path: Path) -> object:
    return {
        name: one.tolist()
        for name, one in read_whole(path.parent, torch.float32).state_dict().items()
    }


def _learnt(path: Path) -> object:
    checkpoint, steps = last_checkpoint(path.parent)
    weights = learnt_weights(checkpoint) if checkpoint else ()
    return steps, [(name, one.tolist()) for name, one in weights]


def _tokens(path: Path) -> object:
    return load_tokenizer(path.parent)("Creatinine 1.0 mg/dL, yes")["input_ids"]


def _drafts(path: Path) -> object:
    with Ledger(path) as ledger:
        return ledger.spent(), ledger.connection.execute("SELECT * FROM drafts").fetchall()


def _counts(path: Path) -> object:
    counts = Cooccurrence.load(path)
    return counts.targets, counts.history, counts.n_target.tolist(), counts.joint.sum()


def _json(path: Path) -> object:
    if path.name == "inputs.json":
        return read_inputs(path.parent)
    return read_decision(path) if path.name == FILE else read_json(path)


KINDS = {
    "Arrow": Kind("prepare/store/*/*.arrow", _shard),
    "Parquet": Kind("prepare/*.parquet", _samples),
    "predictions": Kind("eval/predictions.parquet", lambda path: read_predictions(path).rows()),
    "safetensors": Kind("*/hf/model.safetensors", _weights),
    "checkpoints": Kind("*/checkpoints/*.ckpt", _learnt),
    "JSON": Kind("*/[!m]*.json", _json),
    "graphs": Kind("graph/graphs.jsonl", graph_places),
    "chains": Kind("chains/chains.jsonl", kept_chains),
    "logs": Kind("*/train.jsonl", lambda path: list(read_jsonl(path, ("step",)))),
    "YAML": Kind("*/config.yaml", read_yaml),
    "tokenizer": Kind("*/hf/tokenizer.json", _tokens),
    "trees": Kind("*/data/*.arrow", lambda path: read_trees(path).to_list()),
    "counts": Kind("graph/counts/*.npz", _counts),
    "ledger": Kind("chains/ledger.sqlite", _drafts),
}
"""Kinds of files between stages."""


# --- ways to damage ---------------------------------------------------------------------------


def in_table(path: Path, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
    """Change the rows of a Parquet or Arrow file, which stays one of its format."""
    if path.suffix == ".parquet":
        change(pl.read_parquet(path)).write_parquet(path)
    else:
        table = change(pl.read_ipc(path.read_bytes()))
        table.rechunk().write_ipc(
            path,
            compression="uncompressed",
            compat_level=pl.CompatLevel.oldest(),
            record_batch_size=max(table.height, 1),
        )


def _is_table(path: Path) -> bool:
    return path.suffix == ".parquet" or path.read_bytes()[:6] == b"ARROW1"


def _in_bytes(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def _in_lines(path: Path, change: Callable[[list[bytes], int], list[bytes]]) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(change(lines, random.randrange(len(lines)))))


def _in_tensors(path: Path, change: Callable[[dict[str, Any], str], dict[str, Any]]) -> None:
    tensors = load_file(path)
    save_file(change(tensors, random.choice(sorted(tensors))), path, metadata={"format": "pt"})


def cut(path: Path) -> None:
    """Cut a file at a random byte."""
    _in_bytes(path, lambda own: own[: random.randrange(1, max(2, len(own)))])


def flipped(path: Path) -> None:
    """Change a random byte."""

    def change(own: bytes) -> bytes:
        place = random.randrange(len(own))
        return own[:place] + bytes([own[place] ^ random.randint(1, 255)]) + own[place + 1 :]

    _in_bytes(path, change)


def doubled(path: Path) -> None:
    """Write rows or lines twice, or the whole file."""
    if _is_table(path):
        in_table(path, lambda table: pl.concat([table, table.head(1)]))
    elif path.suffix == ".jsonl":
        _in_lines(path, lambda lines, place: [*lines, lines[place]])
    else:
        _in_bytes(path, lambda own: own + own)


def fewer(path: Path) -> None:
    """Leave out a row, a line, a tensor, a key, or the last byte."""
    if _is_table(path):
        in_table(path, lambda table: table.head(-1))
    elif path.suffix == ".jsonl":
        _in_lines(path, lambda lines, place: [*lines[:place], *lines[place + 1 :]])
    elif path.suffix == ".safetensors":
        _in_tensors(path, lambda own, name: {n: t for n, t in own.items() if n != name})
    else:
        _in_bytes(path, lambda own: own[:-1])


def surplus(path: Path) -> None:
    """Add a column, a line of another kind, a tensor, or bytes."""
    if _is_table(path):
        in_table(path, lambda table: table.with_columns(pl.lit(1).alias("surplus")))
    elif path.suffix == ".jsonl":
        _in_lines(path, lambda lines, place: [*lines[:place], b"[]\n", *lines[place:]])
    elif path.suffix == ".safetensors":
        _in_tensors(path, lambda own, name: own | {"model.layers.99.own": own[name].clone()})
    else:
        _in_bytes(path, lambda own: own + random.randbytes(random.randint(1, 100)))


def out_of_range(path: Path) -> None:
    """Write numbers that nothing can be, or random bytes where there are no numbers."""
    if _is_table(path):
        numbers = pl.selectors.signed_integer() | pl.selectors.float()
        texts = pl.selectors.string() + "?"
        in_table(path, lambda table: table.with_columns(-numbers - 7, texts))
    elif path.suffix == ".safetensors":
        _in_tensors(path, lambda own, name: own | {name: own[name] * float("nan")})
    elif path.suffix in (".json", ".jsonl", ".yaml"):
        wrong = random.choice([b"1e999", b"-7", b"9" * 5000, b"[" * 100_000])
        _in_bytes(path, lambda own: own.replace(b": ", b": " + wrong, 1))
    else:
        place = random.random()
        _in_bytes(path, partial(_overwritten, place=place))


def _overwritten(own: bytes, place: float) -> bytes:
    begin = int(place * len(own))
    return own[:begin] + random.randbytes(min(64, len(own) - begin)) + own[begin + 64 :]


def other_type(path: Path) -> None:
    """Write what is no such file: text, a list, a picture, or a folder."""
    other = [b"this is no such file\n", b'["a list"]', b"\x89PNG\r\n\x1a\n" + random.randbytes(200)]
    path.write_bytes(random.choice([one for one in other if one != path.read_bytes()]))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": cut,
    "flipped byte": flipped,
    "doubled": doubled,
    "fewer": fewer,
    "surplus": surplus,
    "out of range": out_of_range,
    "emptied": lambda path: path.write_bytes(b""),
    "other type": other_type,
    "missing": Path.unlink,
}

RULES = {"emptied", "other type", "missing"}
"""Damages that every reader must see."""

MORE_RULES = {
    **{
        name: {"cut"}
        for name in ("Arrow", "Parquet", "safetensors", "checkpoints", "trees", "JSON")
    },
    **{name: {"cut"} for name in ("counts", "tokenizer", "ledger")},
    "predictions": {"cut", "doubled", "out of range"},
    "graphs": {"doubled", "surplus"},
    "chains": {"surplus"},
    "logs": {"surplus"},
}
"""Damages that the readers of some kinds must see too (docs/reliability.md)."""

NOTHING = {
    "emptied": {"graphs", "chains", "logs", "ledger"},
    "missing": {"checkpoints", "ledger"},
}
"""Kinds of which an empty or a missing file is as if none had been written."""


def must_see(kind: str, damage: str) -> bool:
    """Return whether the reader of a kind must refuse a damage without a manifest."""
    if kind in NOTHING.get(damage, ()):
        return False
    return damage in RULES | MORE_RULES.get(kind, set())


def do(damage: str, path: Path) -> None:
    """Damage a file so that it is another; where a way cannot, a byte is changed."""
    content = path.read_bytes()
    DAMAGES[damage](path)
    while path.exists() and path.read_bytes() == content:
        flipped(path)


# --- tries ------------------------------------------------------------------------------------


def copies(whole: Path, folder: Path) -> tuple[Path, Path]:
    """Return two copies of the finished runs, to damage: with manifests, and without."""
    listed, bare = folder / "listed", folder / "bare"
    shutil.copytree(whole, listed)
    shutil.copytree(whole, bare)
    for path in (*bare.glob("*/manifest.json"), *bare.glob("*/metrics.json")):
        path.unlink()
    for own in (listed, bare):
        with Ledger(own / "chains" / "ledger.sqlite") as ledger:
            ledger.begin([f"sample-{number}" for number in range(200)], 2)
    return listed, bare


def outcome(
    kind: str, damage: str, with_manifest: bool, listed: Path, bare: Path
) -> tuple[str, str]:
    """Damage a random file of a kind and return what came of it, with a description.

    The file is put back.
    """
    root = listed if with_manifest else bare
    path = random.choice(sorted(root.glob(KINDS[kind].files)))
    run = root / path.relative_to(root).parts[0]
    if with_manifest and str(path.relative_to(run)) not in read_manifest(run)["files"]:
        root, with_manifest = bare, False
        path = bare / path.relative_to(listed)
    content = path.read_bytes()
    before = None if with_manifest else repr(KINDS[kind].read(path))
    do(damage, path)
    said = f"{kind}, {damage}, {'with' if with_manifest else 'without'} manifest: {path.name}"
    try:
        if with_manifest:
            check(run)
            return "accepted", said
        after = repr(KINDS[kind].read(path))
    except UserError as error:
        named = str(path) in str(error) or str(path.parent) in str(error)
        fine = named and "\n" not in str(error)
        return ("refused" if fine else "traceback"), f"{said}: {error}"
    except BaseException as error:
        return "traceback", f"{said}: {type(error).__name__}: {str(error)[:300]}"
    finally:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    if after == before:
        return "same", said
    # which parent tables there are, only the manifest knows
    seen = must_see(kind, damage) and not (damage == "missing" and path.name[:7] == "parent-")
    return ("accepted" if seen else "unseen"), said


def turns() -> Iterator[tuple[str, str, bool]]:
    """Yield each kind with each damage, with a manifest and without, in a fixed order."""
    for damage in DAMAGES:
        for kind in KINDS:
            for with_manifest in (True, False):
                yield kind, damage, with_manifest


def by_command(root: Path, whole: Path) -> str:
    """Damage a random file and run the stage that reads it by the command line.

    Raises WrongError unless one line refuses it, which names the file. Returns the kind.
    """
    copied = root / "whole"
    shutil.copytree(whole, copied)
    listed = [
        (kind, path)
        for kind, own in KINDS.items()
        for path in sorted(copied.glob(own.files))
        if str(path.relative_to(copied)) in _listed(copied)
    ]
    kind, path = random.choice(listed)
    source = path.relative_to(copied).parts[0]
    readers = [stage for stage, sources in READS.items() if source in sources]
    damage = random.choice([*DAMAGES])
    apart(partial(do, damage, path))
    if not readers:
        given = ["stage=eval", f"rescore={copied / source}"]
    else:
        given = arguments_of(random.choice(readers), root, copied)
    code, said = forked(given, lambda: None)
    try:
        one_line(code, said)
    except WrongError as told:
        raise WrongError(told.kind, f"{kind}, {damage}, by command: {told}") from None
    if str(path) not in said:
        raise WrongError("accepted", f"{kind}, {damage}, by command: not named: {said[-300:]}")
    return kind


def _listed(root: Path) -> set[str]:
    return {
        f"{manifest.parent.name}/{name}"
        for manifest in root.glob(f"*/{MANIFEST}")
        for name in json.loads(manifest.read_text())["files"]
    }


def quietly(act: Callable[[], Result]) -> Result:
    """Return what `act` does without the warnings of readers of broken files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return act()
