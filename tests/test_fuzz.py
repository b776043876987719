"""Broken tables: each ends in one clear line, or in rows that are counted and reported.

Every table, dictionary and class map is damaged in many ways (`fuzz_damages`), one at a time, and
`stage=prepare` is run on it. What must come of it is the same for all: a `UserError` that names the
file and quotes nothing of it, or rows read = rows kept + rows reported, as many read as were
written, exactly the broken ones reported, and the healthy ones in the store as they were.
"""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ehrr1.errors import UserError
from ehrr1.records.schema import MIMIC_TABLES, ORDER, TABLES
from ehrr1.tasks.samples import Prepared
from tests.fuzz_damages import BROKEN_FILES, Damage, Sheet, damages, file_damages
from tests.small_tables import DICTIONARIES, HOUR, MAPS, START, Rows, place, row, write_csv
from tests.test_records import Metrics, prepared

PATIENTS = 3
PARENTS = ("patients", "admissions", "edstays", "icustays")
CODED = {
    "atc": "medrecon",
    "ccs_diagnoses": "diagnoses_icd",
    "ccs_procedures": "procedures_icd",
}
"""A table that needs each class map."""

DEATHS = {"patients": "dod", "admissions": "deathtime"}

Stored = Counter[tuple[object, ...]]


def rows_of(name: str) -> Rows:
    """One row a patient in the tables that others refer to, two in the others."""
    every = 1 if name in PARENTS else 2
    times = (START + number * HOUR for number in range(PATIENTS * every))
    rows = [row(name, n, n // every, time) for n, time in enumerate(times)]
    if name in DEATHS:
        # Of a column with nothing but one broken time the whole file is refused.
        rows[0][DEATHS[name]] = "2150-01-06"
    return rows


def world_of(name: str) -> dict[str, Rows]:
    """The table, those it refers to, and their dictionaries."""
    stays = {"ed": "edstays", "icu": "icustays"}.get(TABLES[name].module, name)
    tables = {place(own): rows_of(own) for own in ("patients", "admissions", stays, name)}
    needed = {f"{look.module}/{look.file}" for look in TABLES[name].lookups}
    return tables | {own: rows for own, rows in DICTIONARIES.items() if own in needed}


def stored(world: Prepared, table: str) -> Stored:
    """The rows of a table in the store, with all that is kept of them."""
    found: Stored = Counter()
    rows = world.store.shard(0)
    for subject, patient in rows.patients.items():
        own = np.arange(patient.first, patient.last)
        own = own[rows.table[own] == ORDER.index(table)]
        times = (rows.event_time, rows.available_time, rows.late_time)
        numbers = (*times, rows.hadm_id, rows.stay_id)
        columns = [array[own].tolist() for array in numbers]
        items = [rows.names[code] for code in rows.item[own]]
        found.update(zip([subject] * len(own), *columns, items, rows.values(own), strict=True))
    return found


def prepare(root: Path, run: Path, **more: Any) -> tuple[Prepared, Metrics]:
    # One task of each kind: the index must bear what was kept, too.
    return prepared(root, run, tasks=["labevents", "Inpatient_Mortality"], **more)


def problem_of_message(message: str, file: str) -> str | None:
    """A message is one line, names the file, and quotes no cell."""
    if "\n" in message or file not in message:
        return f"does not name {file} in one line: {message}"
    if "#" in message or any(f"0000{n}" in message for n in range(10)):
        return f"quotes a cell: {message}"
    return None


def problem_of_counts(metrics: Metrics, written: dict[str, int]) -> str | None:
    for name, count in written.items():
        read = metrics[f"rows/{name}"]
        if read != count:
            return f"{name}: {count} rows written, {read} read"
        if read != metrics[f"rows_kept/{name}"] + metrics[f"rows_reported/{name}"]:
            return f"{name}: read is not kept plus reported"
    return None


def problem(
    damage: Damage, name: str, root: Path, run: Path, written: dict[str, int], healthy: Stored
) -> str | None:
    """Return the error in the result of a damaged table, None if there is none."""
    try:
        world, metrics = prepare(root, run)
    except UserError as error:
        if damage.reported is not None:
            return f"refused: {error}"
        return problem_of_message(str(error), name)
    if damage.reported is None:
        return f"not refused, reported {metrics[f'rows_reported/{name}']}"
    if metrics[f"rows_reported/{name}"] != damage.reported:
        return f"{metrics[f'rows_reported/{name}']} rows reported, not {damage.reported}"
    gone = healthy - stored(world, name) if name != "patients" else Counter()
    if gone.total() > damage.touched:
        return f"{gone.total()} healthy rows are not in the store as they were"
    return problem_of_counts(metrics, written | {name: written[name] + damage.added})


def cases(name: str) -> list[Damage]:
    """A third of all damages, another third for the next table."""
    turn = ORDER.index(name)
    return damages(Sheet(name, rows_of(name)), turn)[turn % 3 :: 3]


@pytest.mark.parametrize("name", MIMIC_TABLES)
def test_damaged_tables(name: str, tmp_path: Path) -> None:
    world = world_of(name)
    root = write_csv(tmp_path / "world", world)
    healthy, metrics = prepare(root, tmp_path / "healthy")
    written = {own.split("/")[1]: len(rows) for own, rows in world.items() if "/d_" not in own}
    written.pop("radiology_detail", None)
    assert problem_of_counts(metrics, written) is None
    assert not any(metrics[f"rows_reported/{own}"] for own in written)
    rows = stored(healthy, name)
    assert rows.total() == (0 if name == "patients" else written[name])
    path = root / place(name)
    problems = []
    for number, damage in enumerate(cases(name)):
        remove(path)
        damage.write(path, Sheet(name, world[place(name)]))
        found = problem(damage, name, root, tmp_path / str(number), written, rows)
        problems += [f"{damage.name}: {found}"] if found else []
    assert not problems, "\n".join(problems)


def remove(path: Path) -> None:
    """All files of a table."""
    for own in (*path.parent.glob(f"{path.name}.*"), *path.parent.glob(path.name)):
        shutil.rmtree(own) if own.is_dir() and not own.is_symlink() else own.unlink()


def refusals(name: str, rows: Rows) -> list[Damage]:
    """Ways to break a dictionary or a class map."""
    return [damage for turn in (0, 1) for damage in file_damages(Sheet(name, rows), turn)][::4]


def problems_of_refusals(name: str, path: Path, rows: Rows, run: Any) -> str:
    found = []
    for damage in refusals(name, rows):
        remove(path)
        damage.write(path, Sheet(name, rows))
        try:
            run()
        except UserError as error:
            problem = problem_of_message(str(error), name)
            found += [f"{damage.name}: {problem}"] if problem else []
        else:
            found.append(f"{damage.name}: not refused")
    return "\n".join(found)


@pytest.mark.parametrize("name", DICTIONARIES)
def test_damaged_dictionaries(name: str, tmp_path: Path) -> None:
    module, file = name.split("/")
    needed_by = next(
        own
        for own in MIMIC_TABLES
        if any((look.module, look.file) == (module, file) for look in TABLES[own].lookups)
    )
    root = write_csv(tmp_path / "world", world_of(needed_by))
    problems = problems_of_refusals(
        file, root / name, DICTIONARIES[name], lambda: prepare(root, tmp_path / "run")
    )
    assert not problems, problems


@pytest.mark.parametrize("kind", MAPS)
def test_damaged_class_maps(kind: str, tmp_path: Path) -> None:
    root = write_csv(tmp_path / "world", world_of(CODED[kind]))
    path = write_csv(tmp_path, {f"maps/{kind}": MAPS[kind]}) / "maps" / kind

    def run() -> None:
        (own, *_) = sorted(path.parent.glob(f"{kind}.*"))
        maps = dict.fromkeys(MAPS, None) | {kind: str(own)}
        prepare(root, tmp_path / "run", maps=maps)

    problems = problems_of_refusals(kind, path, MAPS[kind], run)
    assert [line.split(":")[0] for line in problems.splitlines()] in ([], ["in two files"]), (
        problems
    )


def test_there_are_at_least_300_different_cases() -> None:
    tables = [(name, damage.name) for name in MIMIC_TABLES for damage in cases(name)]
    others = {name.split("/")[-1]: rows for name, rows in (DICTIONARIES | MAPS).items()}
    more = [(name, d.name) for name, rows in others.items() for d in refusals(name, rows)]
    assert len(set(tables)) == len(tables) > 300
    assert len(set(more)) > 60
    # Each way to break a file is tried on several tables.
    kinds = Counter(name for _, name in tables)
    assert all(kinds[name] > 2 for name in BROKEN_FILES), kinds
