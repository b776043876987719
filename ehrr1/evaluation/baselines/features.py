"""Features of a context for the baselines: counts, flags and numeric values."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache, lru_cache
from itertools import repeat
from operator import itemgetter
from typing import NamedTuple

from ehrr1.evaluation.baselines.text_bags import text_rows
from ehrr1.records.events import Event
from ehrr1.records.schema import TABLES

FLAG_KEYS = frozenset({"Flag", "Warning", "Event_Txt", "Interpretation", "Org_Name"})
"""Record keys that qualify an item: an abnormal value, a drug not given, a resistant organism."""

CLASS_KEYS = frozenset(
    {
        *("Gender", "Race", "Rhythm", "Chiefcomplaint", "Admission_Location"),
        *("Order_Subtype", "Atc Type", "Ccs Type"),
    }
)
"""Record keys whose values are counted for the whole table."""

NUMBER_KEYS = frozenset(
    {
        *("Valuenum", "Value", "Result_Value", "Amount", "Rate", "Dose_Val_Rx", "Anchor_Age"),
        *("Temperature", "Heartrate", "Resprate", "O2Sat", "Sbp", "Dbp", "Pain", "Acuity"),
    }
)
"""Record keys whose values become numeric features."""

MAX_WORDS = 40
"""Maximum number of characters of a value in words that is counted; longer ones are texts."""

DAY = timedelta(days=1)

Measurements = dict[str, list[tuple[datetime | None, float]]]
"""Name of a series -> its measurements as (time, value), oldest first."""


@dataclass(frozen=True, slots=True)
class Bag:
    """The features of one context by name.

    A count that is absent is 0. A number that is absent was not measured.
    """

    counts: dict[str, float] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)


def bag_of_events(context: Sequence[Event]) -> Bag:
    """Return the features of a context.

    The counts are those of events ("table"), items ("table/item"), items with a flag
    ("table/item/flag", `FLAG_KEYS`), values in words ("table/item.key=words") and classes
    ("table.key=value", `CLASS_KEYS`). The numbers are those of `summary` for each key of
    `NUMBER_KEYS` of each item ("table/item.key"; "table.key" in rows without an item). A value such
    as "120/80" is two series, of which the second has the suffix "/2".
    """
    counted: list[str] = []
    measured: Measurements = defaultdict(list)
    for event in context:
        name, rows = _described(event)
        counted.append(name)
        for row in rows:
            counted += row.counts
            for series, number in row.numbers:
                measured[series].append((event.time, number))
    numbers = {
        name: value
        for series, values in measured.items()
        for name, value in zip(names_of(series), summary(values), strict=False)
    }
    return Bag(dict(Counter(counted)), numbers)


class RowFeatures(NamedTuple):
    """The part of a bag that one row adds: names to count, and numbers of named series."""

    counts: tuple[str, ...]
    numbers: tuple[tuple[str, float], ...]


def _described(event: Event) -> tuple[str, Iterable[RowFeatures]]:
    """Return the name of an event's table, and the features of its rows."""
    if event.text is not None:
        name, rows = text_rows(event)
        return name, (_row_features(name, item, row.items()) for item, row in rows)
    used = map(_cells(event.table), event.rows)
    return event.table, map(_known_row, repeat(event.table), event.items, used)


@lru_cache(maxsize=2**16)
def _known_row(table: str, item: str, cells: tuple[str, ...]) -> RowFeatures:
    """Return the features of a row by its cells of `_columns`; rows recur in many contexts."""
    keys = (key for _, key in _columns(table))
    return _row_features(table, item, zip(keys, cells, strict=True))


def _row_features(name: str, item: str, cells: Iterable[tuple[str, str]]) -> RowFeatures:
    """Return the features of a row of the table `name`, by its cells: (key, value)."""
    owner = f"{name}/{item}" if item else name
    counts = [owner] if item else []
    numbers: list[tuple[str, float]] = []
    for key, value in cells:
        if not value:
            continue
        if key in FLAG_KEYS:
            counts.append(f"{owner}/{value}")
        elif key in CLASS_KEYS:
            counts.append(f"{name}.{key}={value}")
        elif key in NUMBER_KEYS:
            series, found = f"{owner}.{key}", numbers_of(value)
            numbers += [(series + end, one) for end, one in zip(("", "/2"), found, strict=False)]
            if not found and len(value) <= MAX_WORDS:
                counts.append(f"{series}={value.lower()}")
    return RowFeatures(tuple(counts), tuple(numbers))


def rows_of(event: Event) -> tuple[str, Iterator[tuple[str, dict[str, str]]]]:
    """Return the name of an event's table, and each row as its item ("" if none) and its cells.

    Of the cells at least those are included that have features.
    """
    if event.text is not None:
        return text_rows(event)
    columns = _columns(event.table)
    return event.table, (
        (item, {key: row[place] for place, key in columns})
        for item, row in zip(event.items, event.rows, strict=True)
    )


@cache
def _cells(table: str) -> Callable[[tuple[str, ...]], tuple[str, ...]]:
    """Return a function from a row to its cells of `_columns`."""
    places = [place for place, _ in _columns(table)]
    if len(places) > 1:
        return itemgetter(*places)
    return lambda row: tuple(row[place] for place in places)


@cache
def _columns(table: str) -> list[tuple[int, str]]:
    """Return the place and the name of the keys of a table that have features."""
    used = FLAG_KEYS | CLASS_KEYS | NUMBER_KEYS
    return [(place, key) for place, key in enumerate(TABLES[table].keys) if key in used]


@lru_cache(maxsize=2**16)
def names_of(series: str) -> tuple[str, ...]:
    """Return the names of the features of a series, in the order of `summary`."""
    return tuple(f"{series} {feature}" for feature in ("latest", "min", "max", "slope"))


def summary(values: Sequence[tuple[datetime | None, float]]) -> list[float]:
    """Return the latest, the smallest and the largest value, and the slope per day.

    The slope is that of the least-squares line. It is left out if the values have fewer than two
    different times.
    """
    if len(values) == 1:
        return [values[0][1]] * 3
    numbers = [value for _, value in values]
    found = [numbers[-1], min(numbers), max(numbers)]
    timed = [(time, value) for time, value in values if time is not None]
    if len({time for time, _ in timed}) > 1:
        start = timed[0][0]
        days = [(time - start) / DAY for time, _ in timed]
        mean_day = sum(days) / len(days)
        mean = sum(value for _, value in timed) / len(timed)
        covariance = sum((d - mean_day) * (v - mean) for d, (_, v) in zip(days, timed, strict=True))
        found.append(covariance / sum((day - mean_day) ** 2 for day in days))
    return found


@lru_cache(maxsize=2**16)
def numbers_of(value: str) -> tuple[float, ...]:
    """Return the one or two numbers of a value such as "98.6" or "120/80"; empty for words."""
    parts = value.split("/")
    return tuple(map(float, parts)) if len(parts) <= 2 and all(map(_is_number, parts)) else ()


def _is_number(value: str) -> bool:
    return value.removeprefix("-").replace(".", "", 1).isdecimal()
