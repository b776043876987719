"""Damaged inputs of users for `benchmarks.chaos`: rows, labels, tables, lists, archives, settings.

A wrong row is left out and named, the others are used; a file that cannot be used is one line. The
outcomes are those of `benchmarks.chaos_damages`; a row that is left out and named is refused.
"""

import json
import random
import tarfile
from collections.abc import Callable
from datetime import datetime
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl
from omegaconf import OmegaConf

from benchmarks.chaos_damages import DAMAGES
from ehrr1.config.schema import check, parse
from ehrr1.errors import UserError
from ehrr1.records.release.archives import unpack
from ehrr1.records.schema import MIMIC_TABLES, ORDER
from ehrr1.runs import Run
from ehrr1.stages import prepare
from ehrr1.stages.infer_batch import read_batch
from ehrr1.tasks.label_files import read_own_labels
from ehrr1.tasks.sampling import read_limits, read_subjects
from tests import test_fuzz as fuzz
from tests.settings import composed, raw
from tests.small_tables import place, write_csv
from tests.test_benchmark_file import row, write
from tests.test_hostile import BAD_ROWS, asked

Outcome = tuple[str, str]


def told(act: Callable[[], str], path: Path) -> str:
    """Return what `act` says came of it: a UserError in one line that names `path` is refused."""
    try:
        return act()
    except UserError as error:
        return "refused" if path.name in str(error) and "\n" not in str(error) else "traceback"


def _mutated(line: bytes) -> bytes:
    """Change a random byte of a line, or cut it; it stays one line."""
    spot = random.randrange(len(line))
    if random.random() < 0.5:
        return line[:spot] or b"x"
    return line[:spot] + bytes([random.choice(b'\x00"{}[],:\xff9')]) + line[spot + 1 :]


def rows_of_infer(folder: Path) -> Outcome:
    """Put a bad or a mutated row among good ones of a file of questions."""
    good = [asked(id=f"row-{number}") for number in range(3)]
    known = random.random() < 0.7
    bad = random.choice(BAD_ROWS[:-1])[0] if known else _mutated(json.dumps(asked(id="m")).encode())
    path = write(folder / "questions.jsonl", *good[:2], bad, good[2])

    def act() -> str:
        batch = read_batch(path, folder / "out", lambda row: list)
        if 3 in batch.refused and batch.rows == 4 and len(batch.left) == 3:
            return "refused"
        return "accepted" if known or batch.rows != 4 or len(batch.left) != 4 else "unseen"

    return told(act, path), f"rows of infer: {bad!r:.150}"


BAD_BENCHMARK: tuple[Any, ...] = (
    *('{"idx": ' + "9" * 5_000 + "}", '{"idx": ' + "[" * 100_000, b'{"idx": "\xff"}', "[]", "7"),
    *(row(2, task_info=["labevents"]), row(3, prediction_time=5), row(4, reasoning="half \ud800")),
    *(row(5, input=7), row(6, instruction=None), row(7, task_info={"task": "none"}), "null"),
)


def benchmark(folder: Path) -> Outcome:
    """Put a bad or a mutated row into a benchmark's file of rows."""
    known = random.random() < 0.7
    bad = random.choice(BAD_BENCHMARK) if known else _mutated(json.dumps(row(1)).encode())
    path = write(folder / "rows.jsonl", row(0), bad, row(9))
    (folder / "prepare").mkdir()
    cfg = _benchmark().model_copy(deep=True)
    cfg.data.path = str(path)

    def act() -> str:
        found = prepare.run(cfg, Run(folder / "prepare", "prepare"))
        kept, reported = found["rows_kept/benchmark"], found.get("rows_reported/benchmark", 0)
        if kept == 2 and reported == 1:
            return "refused"
        return "accepted" if known or kept + reported != 3 else "unseen"

    return told(act, path), f"benchmark: {bad!r:.150}"


@cache
def _benchmark() -> Any:
    return composed("data=benchmark", data={"path": "elsewhere"})


def labels(folder: Path) -> Outcome:
    """Damage a file of labels of the user's own."""
    path = folder / "labels.parquet"
    moments = [datetime(2150, 1, day + 1) for day in range(20)]
    table = pl.DataFrame(
        {
            "subject_id": list(range(20)),
            "prediction_time": moments,
            "boolean_value": [day % 3 == 0 for day in range(20)],
        }
    )
    strange: dict[str, Callable[[pl.DataFrame], pl.DataFrame]] = {
        "without a column": lambda own: own.drop(random.choice(own.columns)),
        "words for ids": lambda own: own.with_columns(subject_id=pl.lit("x")),
        "no ids": lambda own: own.with_columns(subject_id=pl.lit(None, pl.Int64)),
        "words for times": lambda own: own.with_columns(prediction_time=pl.lit("soon")),
        "words for labels": lambda own: own.with_columns(boolean_value=pl.lit("perhaps")),
        "of nobody": lambda own: own.with_columns(subject_id=pl.col("subject_id") + 1000),
        "lists": lambda own: own.with_columns(subject_id=pl.lit([1, 2])),
    }
    name = random.choice([*strange, "cut", "flipped byte", "emptied", "other type", "missing"])
    if name in strange:
        strange[name](table).write_parquet(path)
    else:
        table.write_parquet(path)
        DAMAGES[name](path)

    def act() -> str:
        found = read_own_labels(path, pl.Series(range(20)), [], None).frame
        if name == "flipped byte":
            same = found.select(table.columns[:2]).equals(table.select(table.columns[:2]))
            return "same" if same else "unseen"
        return "accepted"

    return told(act, path), f"labels: {name}"


def tables(folder: Path) -> Outcome:
    """Damage a table of MIMIC-IV as tests/test_fuzz.py does."""
    name = random.choice(MIMIC_TABLES)
    world = fuzz.world_of(name)
    root = write_csv(folder / "world", world)
    healthy, _ = fuzz.prepare(root, folder / "healthy")
    written = {own.split("/")[1]: len(rows) for own, rows in world.items() if "/d_" not in own}
    written.pop("radiology_detail", None)
    rows = fuzz.stored(healthy, name)
    sheet = fuzz.Sheet(name, world[place(name)])
    damage = random.choice(fuzz.damages(sheet, ORDER.index(name)))
    path = root / place(name)
    fuzz.remove(path)
    damage.write(path, sheet)
    found = fuzz.problem(damage, name, root, folder / "damaged", written, rows)
    kind = "same" if damage.reported == 0 else "refused"
    return (kind if found is None else "accepted"), f"tables: {name}, {damage.name}: {found}"


BAD_NUMBERS = (
    *("[" * 100_000, "9" * 5_000, b"\xff", '{"labevents": ' + "9" * 4_000 + "}", "{", "[]", "7"),
    *('{"labevents": [[1]]}', '{"labevents": true}', '{"labevents": -2}', '{"none": 1}', ""),
    *('{"labevents": 1.5}', '{"labevents": "1"}', '{"labevents": NaN}', '"half \\ud800'),
)
BAD_SUBJECTS = (
    *("", "subject_id\n", "7\nx\n", "7\n" + "9" * 5_000, f"{2**63}", "-1", "7.5", b"\xff\xfe7"),
    *("7 8", "0x1F", "7\n\x00\n"),
)


def lists(folder: Path) -> Outcome:
    """Write a bad list of patients or numbers per task."""
    subjects = random.random() < 0.5
    bad = random.choice(BAD_SUBJECTS if subjects else BAD_NUMBERS)
    path = folder / ("subjects.txt" if subjects else "numbers.json")
    path.write_bytes(bad if isinstance(bad, bytes) else bad.encode())

    def act() -> str:
        read_subjects(path) if subjects else read_limits(path)
        return "accepted"

    return told(act, path), f"lists: {bad!r:.100}"


def archives(folder: Path) -> Outcome:
    """Damage an archive of the release."""
    path, content = folder / "whole.tar.gz", random.randbytes(3000).hex().encode()
    with tarfile.open(path, "w:gz") as file:
        info = tarfile.TarInfo("patients_ehr/1.csv")
        info.size = len(content)
        file.addfile(info, BytesIO(content))
    name = random.choice(["cut", "flipped byte", "emptied", "other type", "fewer"])
    DAMAGES[name](path)

    def act() -> str:
        unpack(path, folder / "unpacked")
        there = folder / "unpacked" / "patients_ehr" / "1.csv"
        return "same" if there.is_file() and there.read_bytes() == content else "accepted"

    found = told(act, path)
    if found == "refused" and (folder / "unpacked").exists():
        found = "accepted"
    return found, f"archives: {name}"


def settings(folder: Path) -> Outcome:
    """Set a random setting to what it cannot be, or one that does not exist."""
    base = _base()
    key = random.choice(_keys())
    value = OmegaConf.select(base, key)
    numbers = isinstance(value, int | float) and not isinstance(value, bool)
    wrong: Any = random.choice([*([float("nan"), "many", -(2**70)] if numbers else []), {"x": 1}])
    if random.random() < 0.2:
        key, wrong = f"{key}_own", 1
    changed = OmegaConf.create(OmegaConf.to_container(base))

    def act() -> str:
        OmegaConf.update(changed, key, wrong, merge=False, force_add=True)
        check(parse(changed, []))
        return "accepted"

    try:
        return act(), f"settings: {key}={wrong!r}"
    except UserError as error:
        named = key.split(".")[0] in str(error) and "\n" not in str(error)
        return ("refused" if named else "traceback"), f"settings: {key}={wrong!r}: {error}"


_FREE = ("launcher", "cluster", "search", "model.config", "rl.rewards", "callbacks", "logger")
"""Settings whose keys are those of other programs or of the user."""


@cache
def _base() -> Any:
    return raw("experiment=smoke")


@cache
def _keys() -> list[str]:
    """Return the settings that are single values, by their names."""
    found: list[str] = []

    def walk(prefix: str, node: Any) -> None:
        for name, value in node.items():
            walk(f"{prefix}{name}.", value) if isinstance(value, dict) else found.append(
                f"{prefix}{name}"
            )

    walk("", OmegaConf.to_container(_base()))
    return [key for key in found if not key.startswith(_FREE)]


KINDS: dict[str, Callable[[Path], Outcome]] = {
    "rows of infer": rows_of_infer,
    "benchmark files": benchmark,
    "label files": labels,
    "tables": tables,
    "lists and numbers": lists,
    "archives": archives,
    "settings": settings,
}
"""Kinds of inputs of users, and what damages one of each in a folder and returns the outcome."""


def tried(kind: str, folder: Path) -> Outcome:
    """Damage an input of a kind in a new folder; return what came of it, with a description."""
    folder.mkdir(parents=True)
    try:
        return KINDS[kind](folder)
    except BaseException as error:
        return "traceback", f"{kind}: {type(error).__name__}: {str(error)[:300]}"


def ready() -> None:
    """Compose what the tries share, before processes are forked for them."""
    for compose in (_benchmark, _base, _keys):
        compose()
