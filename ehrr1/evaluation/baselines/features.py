"""Features of a context for the baselines: counts, flags and numeric values."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache, lru_cache

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
    counts: Counter[str] = Counter()
    measured: Measurements = defaultdict(list)
    for event in context:
        name, rows = rows_of(event)
        counts[name] += 1
        for item, row in rows:
            owner = f"{name}/{item}" if item else name
            if item:
                counts[owner] += 1
            for key, value in row.items():
                if not value:
                    continue
                if key in FLAG_KEYS:
                    counts[f"{owner}/{value}"] += 1
                elif key in CLASS_KEYS:
                    counts[f"{name}.{key}={value}"] += 1
                elif key in NUMBER_KEYS:
                    _add_value(f"{owner}.{key}", value, event.time, counts, measured)
    numbers = {
        name: value
        for series, values in measured.items()
        for name, value in zip(names_of(series), summary(values), strict=False)
    }
    return Bag(dict(counts), numbers)


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


def _add_value(
    series: str,
    value: str,
    time: datetime | None,
    counts: Counter[str],
    measured: Measurements,
) -> None:
    """Add a value to the measurements of its series, or to the counts if it is in words."""
    if numbers := numbers_of(value):
        for suffix, number in zip(("", "/2"), numbers, strict=False):
            measured[series + suffix].append((time, number))
    elif len(value) <= MAX_WORDS:
        counts[f"{series}={value.lower()}"] += 1


@lru_cache(maxsize=2**16)
def numbers_of(value: str) -> tuple[float, ...]:
    """Return the one or two numbers of a value such as "98.6" or "120/80"; empty for words."""
    parts = value.split("/")
    return tuple(map(float, parts)) if len(parts) <= 2 and all(map(_is_number, parts)) else ()


def _is_number(value: str) -> bool:
    return value.removeprefix("-").replace(".", "", 1).isdecimal()
