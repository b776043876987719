"""Helpers that turn a course into rows: rounds in time, choices of items, frames."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from ehrr1.synthetic.columns import COLUMNS
from ehrr1.synthetic.conditions import CONDITIONS
from ehrr1.synthetic.course import DAY, HOUR, NEVER, Course
from ehrr1.synthetic.problems import PROBLEMS
from ehrr1.synthetic.signs import slots_of

SIGN_LOW, SIGN_HIGH, SIGN_NONE = 0.22, 0.65, 0.1
SIGN_HIGH_DYING = 0.61  # the level also determines how early death occurs, so signs are weaker
PROBLEM_CHANCE, STRAY_CHANCE = 0.78, 0.02
_DATES = {"omr.chartdate", "procedures_icd.chartdate", "hcpcsevents.chartdate", "patients.dod"}
_CLOCKS = {"deathtime", "edregtime", "edouttime", "chartdate", "storedate"}

Column = np.ndarray | pl.Series | list | str | int | float | None
Rounds = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass
class Chunk:
    """One chunk of patients with its ids, its random generator and its rows by table."""

    first: int
    course: Course
    rng: np.random.Generator
    draws: dict[str, np.ndarray] = field(default_factory=dict)
    tables: dict[str, list[pl.DataFrame]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        v = self.course.visits
        n = len(v["patient"])
        self.n = n
        serial = np.arange(n)
        v["subject_id"] = self.course.patients["subject_id"][v["patient"]]
        v["hadm_id"] = np.where(v["admitted"], 20_000_000 + self.first * 16 + serial, NEVER)
        v["ed_id"] = np.where(v["emergency"], 30_000_000 + self.first * 16 + serial, NEVER)
        v["icu_id"] = np.where(v["icu_in"] != NEVER, 34_000_000 + self.first * 16 + serial, NEVER)
        v["icu2_id"] = np.where(v["icu2_in"] != NEVER, 37_000_000 + self.first * 16 + serial, NEVER)

    @property
    def visits(self) -> dict[str, np.ndarray]:
        """Return the columns of the visits."""
        return self.course.visits

    def patient(self, key: str) -> np.ndarray:
        """Return a column of the patients with one value per visit."""
        return self.course.patients[key][self.visits["patient"]]

    def add(self, table: str, **columns: Column) -> None:
        """Append rows to a table; columns that are not given stay empty."""
        self.tables.setdefault(table, []).append(frame(table, columns))

    def serials(self, count: int, space: int) -> np.ndarray:
        """Return `count` ids, unique over all chunks.

        `space` is the maximum number of ids per patient.
        """
        return np.arange(count) + self.first * space + 1


def frame(table: str, columns: Mapping[str, Column]) -> pl.DataFrame:
    """Return a frame with MIMIC's columns in their order; epoch seconds become dates and times.

    Raises KeyError for columns that the table does not have.
    """
    name = table.split("/")[1]
    length = next(len(c) for c in columns.values() if isinstance(c, (np.ndarray, pl.Series)))
    series: list[pl.Series] = []
    for column in COLUMNS[table]:
        value = columns.get(column)
        if isinstance(value, np.ndarray | pl.Series | list):
            series.append(_series(name, column, value))
        else:
            kind = pl.String if value is None else None
            series.append(pl.Series(column, [value], dtype=kind).new_from_index(0, length))
    unknown = set(columns) - set(COLUMNS[table])
    if unknown:
        raise KeyError(f"{table} has no columns {sorted(unknown)}")
    return pl.DataFrame(series)


def _series(table: str, column: str, value: np.ndarray | pl.Series | list) -> pl.Series:
    if not isinstance(value, np.ndarray) or value.dtype != np.int64:
        return pl.Series(column, value)
    series = pl.Series(column, value)
    if (value == NEVER).any():
        series = series.set(series == NEVER, None)
    if f"{table}.{column}" in _DATES:
        return pl.from_epoch(series, "s").dt.date()
    if column in _CLOCKS or column.endswith("time"):
        return pl.from_epoch(series, "s")
    return series


def pick(names: Sequence[str], codes: np.ndarray) -> pl.Series:
    """Return the names at `codes`; -1 gives a null cell."""
    series = pl.Series(list(names), dtype=pl.String).gather(np.maximum(codes, 0))
    return series.set(pl.Series(codes < 0), None) if (codes < 0).any() else series


def rounds(
    start: np.ndarray, end: np.ndarray, every: float, offset: float, sparse: bool = False
) -> Rounds:
    """Return regular times from `start + offset` until `end`, every `every` hours.

    Returns the arrays visit, time and number of the round. With `sparse`, only every third round is
    kept after the third day, since stable patients are charted less often.
    """
    step = int(every * HOUR)
    begin = start + int(offset * HOUR)
    valid = (start != NEVER) & (end != NEVER)
    counts = np.where(valid, np.maximum(0, (end - begin - 60) // step + 1), 0)
    visit = np.repeat(np.arange(len(start)), counts)
    number = np.arange(len(visit)) - np.repeat(np.cumsum(counts) - counts, counts)
    time = begin[visit] + number * step
    if sparse:
        keep = (number % 3 == 0) | (time < start[visit] + 3 * DAY)
        visit, time, number = visit[keep], time[keep], number[keep]
    return visit, time, number


def jitter(time: np.ndarray, minutes: int, rng: np.random.Generator) -> np.ndarray:
    """Return times delayed by up to `minutes`, on whole minutes."""
    return time // 60 * 60 + rng.integers(0, minutes + 1, len(time)) * 60


def cells(
    active: np.ndarray, keep: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return row and column of the active cells, each kept with probability `keep`."""
    row, column = np.nonzero(active & (rng.random(active.shape, dtype=np.float32) < keep))
    return row, column


def sign_rise(latent: str) -> float:
    """Return by how much a latent level of 1 raises the probability of a slot's first name."""
    return (SIGN_HIGH_DYING if latent == "D" else SIGN_HIGH) - SIGN_LOW


def slot_items(chunk: Chunk, place: str, vocabulary: Sequence[str]) -> np.ndarray:
    """Draw the items of the slots of `place` once per visit; bool, shape (visits, items)."""
    index = {name: code for code, name in enumerate(vocabulary)}
    active = np.zeros((chunk.n, len(vocabulary)), bool)
    rows = np.arange(chunk.n)
    for slot in slots_of(place):
        level = np.clip(chunk.visits[f"z_{slot.latent}"], 0, 1)
        draw = chunk.rng.random(chunk.n)
        chance = SIGN_LOW + sign_rise(slot.latent) * level
        code = np.where(draw < chance, index[slot.high], index[slot.low])
        shown = chunk.rng.random(chunk.n) >= SIGN_NONE
        active[rows[shown], code[shown]] = True
    return active


def problem_items(chunk: Chunk, attribute: str, vocabulary: Sequence[str]) -> np.ndarray:
    """Draw items of the acute problem, with omissions and stray items.

    Returns a bool array of shape (visits, items).
    """
    index = {name: code for code, name in enumerate(vocabulary)}
    chance = np.full((len(PROBLEMS), len(vocabulary)), 0.0)
    every = [name for problem in PROBLEMS for name in getattr(problem, attribute)]
    chance[:, [index[name] for name in every]] = STRAY_CHANCE
    for row, problem in enumerate(PROBLEMS):
        chance[row, [index[name] for name in getattr(problem, attribute)]] = PROBLEM_CHANCE
    return chunk.rng.random((chunk.n, len(vocabulary))) < chance[chunk.visits["problem"]]


def condition_drugs(chunk: Chunk, vocabulary: Sequence[str]) -> np.ndarray:
    """Draw home drugs of the chronic conditions, the same at every visit except for a few changes.

    Returns a bool array of shape (visits, drugs).
    """
    index = {name: code for code, name in enumerate(vocabulary)}
    people = len(chunk.course.patients["subject_id"])
    taken = np.zeros((people, len(vocabulary)), bool)
    for number, condition in enumerate(CONDITIONS):
        has = chunk.course.patients["conditions"][:, number]
        for name in condition.drugs:
            chance = np.where(has, 0.75, 0.015)
            taken[:, index[name]] |= chunk.rng.random(people) < chance
    active = taken[chunk.visits["patient"]]
    return active & (chunk.rng.random(active.shape) < 0.93)


def staff(chunk: Chunk, count: int) -> np.ndarray:
    """Return random caregiver ids."""
    return chunk.rng.integers(0, 900, count) * 97 + 1200


def providers(chunk: Chunk, count: int) -> pl.Series:
    """Return random provider ids such as P03F2B."""
    return pick(PROVIDERS, chunk.rng.integers(0, len(PROVIDERS), count))


PROVIDERS = [
    f"P{(37 * number) % 100:02d}{chr(65 + number % 23)}{number % 10}{chr(70 + number % 19)}"
    for number in range(800)
]
CAREGIVERS = [number * 97 + 1200 for number in range(900)]
