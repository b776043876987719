"""Small curves of what was measured more than once in a record, as SVG."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from html import escape

from ehrr1.graph.states import UNIT, VALUE_KEYS
from ehrr1.reasoning.claims import MEASURED
from ehrr1.reasoning.facts import number
from ehrr1.records.events import Event
from ehrr1.records.schema import TABLES

MOST = 24
"""Maximum number of curves, those of most values."""

WIDTH, HEIGHT, EDGE = 150, 36, 4
"""Size of a curve and its margin, in pixels."""

Series = dict[tuple[str, str, str], list[tuple[datetime, float]]]
"""Table, item and unit -> times and values, in order of time."""


def measured(record: Sequence[Event]) -> Series:
    """Return the numeric values of each item of a record that has at least two."""
    found: Series = {}
    for event in record:
        if event.table not in MEASURED or event.time is None:
            continue
        keys = tuple(TABLES[event.table].keys)
        for item, row in zip(event.items, event.rows, strict=True):
            cells = dict(zip(keys, row, strict=True))
            value = number(next((cells[key] for key in keys if key in VALUE_KEYS), ""))
            if item and value is not None:
                key = (event.table, item, cells.get(UNIT, ""))
                found.setdefault(key, []).append((event.time, value))
    return {key: values for key, values in found.items() if len({t for t, _ in values}) > 1}


def curves(record: Sequence[Event]) -> Iterator[str]:
    """Yield a figure for each item that was measured more than once, the most frequent first."""
    series = measured(record)
    most = sorted(series, key=lambda key: (-len(series[key]), key))[:MOST]
    for table, item, unit in most:
        values = series[table, item, unit]
        numbers = [value for _, value in values]
        told = f"{numbers[-1]:g} {unit}".strip()
        ranged = f"{min(numbers):g} to {max(numbers):g}, {len(numbers)} values"
        label = escape(f"{item}, {TABLES[table].heading}: {ranged}, last {told}", quote=True)
        yield (
            f"<figure><figcaption>{escape(item)} <b>{escape(told)}</b></figcaption>"
            f'<svg role="img" aria-label="{label}" viewBox="0 0 {WIDTH} {HEIGHT}" '
            f'width="{WIDTH}" height="{HEIGHT}"><path d="{_path(values)}"/></svg>'
            f"<small>{escape(ranged)}</small></figure>"
        )


def _path(values: Sequence[tuple[datetime, float]]) -> str:
    """Return the line through the values, scaled to the size of a curve."""
    seconds = [(time - values[0][0]).total_seconds() for time, _ in values]
    numbers = [value for _, value in values]
    low, high = min(numbers), max(numbers)
    across = (WIDTH - 2 * EDGE) / max(seconds[-1], 1)
    up = (HEIGHT - 2 * EDGE) / ((high - low) or 1)
    level = 0.0 if high > low else (HEIGHT - 2 * EDGE) / 2
    points = (
        f"{EDGE + second * across:.1f} {HEIGHT - EDGE - level - (value - low) * up:.1f}"
        for second, value in zip(seconds, numbers, strict=True)
    )
    return "M" + "L".join(points)
