"""Tools that turn a course into rows: rounds in time, choices of items, frames in MIMIC layout."""

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
SIGN_HIGH_DYING = 0.61  # the highest level decides the earliest deaths: weaker single signs
PROBLEM_CHANCE, STRAY_CHANCE = 0.78, 0.02
_DATES = {"omr.chartdate", "procedures_icd.chartdate", "hcpcsevents.chartdate", "patients.dod"}
_CLOCKS = {"deathtime", "edregtime", "edouttime", "chartdate", "storedate"}

Column = np.ndarray | pl.Series | list | str | int | float | None
Rounds = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass
class Chunk:
    """One chunk of patients with its ids, its random stream and its rows by table."""

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
        return self.course.visits

    def patient(self, key: str) -> np.ndarray:
        """A patient column, one value a visit."""
        return self.course.patients[key][self.visits["patient"]]

    def add(self, table: str, **columns: Column) -> None:
        """Append rows; columns that are not given stay empty."""
        self.tables.setdefault(table, []).append(frame(table, columns))

    def serials(self, count: int, space: int) -> np.ndarray:
        """`count` ids, unique over all chunks while a patient has fewer than `space` rows."""
        return np.arange(count) + self.first * space + 1


def frame(table: str, columns: Mapping[str, Column]) -> pl.DataFrame:
    """A frame with MIMIC's columns in their order; epoch seconds become dates and times."""
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
    """The names at `codes`; -1 gives an empty cell."""
    series = pl.Series(list(names), dtype=pl.String).gather(np.maximum(codes, 0))
    return series.set(pl.Series(codes < 0), None) if (codes < 0).any() else series


def rounds(
    start: np.ndarray, end: np.ndarray, every: float, offset: float, sparse: bool = False
) -> Rounds:
    """Regular times from `start + offset` until `end`, `every` hours: (visit, time, number).

    With `sparse`, one round of three is left after the third day: stable patients are charted
    less often.
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
    """Times moved by up to `minutes`, on whole minutes."""
    return time // 60 * 60 + rng.integers(0, minutes + 1, len(time)) * 60


def cells(
    active: np.ndarray, keep: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of the active cells, each kept with probability `keep`."""
    row, column = np.nonzero(active & (rng.random(active.shape, dtype=np.float32) < keep))
    return row, column


def sign_rise(latent: str) -> float:
    """How much likelier a slot's first word is at the latent's full level than without it."""
    return (SIGN_HIGH_DYING if latent == "D" else SIGN_HIGH) - SIGN_LOW


def slot_items(chunk: Chunk, place: str, vocabulary: Sequence[str]) -> np.ndarray:
    """Which items the slots of `place` choose: bool, visits x items. Drawn once a visit."""
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
    """Items that the acute problem brings, with misses and strays: bool, visits x items."""
    index = {name: code for code, name in enumerate(vocabulary)}
    chance = np.full((len(PROBLEMS), len(vocabulary)), 0.0)
    every = [name for problem in PROBLEMS for name in getattr(problem, attribute)]
    chance[:, [index[name] for name in every]] = STRAY_CHANCE
    for row, problem in enumerate(PROBLEMS):
        chance[row, [index[name] for name in getattr(problem, attribute)]] = PROBLEM_CHANCE
    return chunk.rng.random((chunk.n, len(vocabulary))) < chance[chunk.visits["problem"]]


def condition_drugs(chunk: Chunk, vocabulary: Sequence[str]) -> np.ndarray:
    """Home drugs of the chronic conditions, the same at every visit but for a few changes."""
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
    """Caregiver ids."""
    return chunk.rng.integers(0, 900, count) * 97 + 1200


def providers(chunk: Chunk, count: int) -> pl.Series:
    """Provider ids such as P03F2B."""
    return pick(PROVIDERS, chunk.rng.integers(0, len(PROVIDERS), count))


PROVIDERS = [
    f"P{(37 * number) % 100:02d}{chr(65 + number % 23)}{number % 10}{chr(70 + number % 19)}"
    for number in range(800)
]
CAREGIVERS = [number * 97 + 1200 for number in range(900)]
