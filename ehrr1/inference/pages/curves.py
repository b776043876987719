"""Small curves of what was measured more than once in a record, as SVG on one time axis."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from html import escape

from ehrr1.graph.states import LOWER, UNIT, UPPER, VALUE_KEYS
from ehrr1.reasoning.claims import MEASURED
from ehrr1.reasoning.facts import number
from ehrr1.records.events import Event
from ehrr1.records.schema import TABLES

MOST = 24
"""Maximum number of curves, those of most values."""

WIDTH, HEIGHT, EDGE = 400, 36, 4
"""Size of a curve and its margin. The page stretches the width, which has no unit."""


@dataclass(slots=True)
class Series:
    """The values of one item in one unit, in order of time.

    lower, upper: the reference range beside the last value that has one.
    """

    table: str
    item: str
    unit: str
    times: list[datetime] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    lower: float | None = None
    upper: float | None = None


def measured(record: Sequence[Event]) -> list[Series]:
    """Return the numeric values of each item that has values at two or more times."""
    found: dict[tuple[str, str, str], Series] = {}
    for event in record:
        if event.table not in MEASURED or event.time is None:
            continue
        keys = tuple(TABLES[event.table].keys)
        for item, row in zip(event.items, event.rows, strict=True):
            cells = dict(zip(keys, row, strict=True))
            value = number(next((cells[key] for key in keys if key in VALUE_KEYS), ""))
            if not item or value is None:
                continue
            about = (event.table, item, cells.get(UNIT, ""))
            series = found.setdefault(about, Series(*about))
            series.times.append(event.time)
            series.values.append(value)
            lower, upper = (number(cells.get(key, "")) for key in (LOWER, UPPER))
            if lower is not None or upper is not None:
                series.lower, series.upper = lower, upper
    return [series for series in found.values() if len(set(series.times)) > 1]


def curves(record: Sequence[Event], asked: datetime | None) -> Iterator[str]:
    """Yield the number of curves, their time axis, and a figure an item, the most frequent first.

    The axis goes from the first value that is shown to `asked`, the time of the question (None:
    to the last value).
    """
    series = measured(record)
    if not series:
        return
    most = sorted(series, key=lambda one: (-len(one.values), one.table, one.item, one.unit))[:MOST]
    times = [time for one in most for time in one.times]
    first, last = min(times), max(times if asked is None else [*times, asked])
    cut = ", those measured most often" if len(most) < len(series) else ""
    yield (
        f'<p class="soft">{len(most)} of {len(series)} values shown{cut}. A dot is a measurement, '
        "a band the reference range that the record gives. All have the same time axis.</p>"
    )
    end = "the last value" if asked is None else "the question"
    yield (
        f'<p class="axis"><time>{first:%Y-%m-%d %H:%M}</time>'
        f"<span><time>{last:%Y-%m-%d %H:%M}</time>, {end}</span></p>"
    )
    for one in most:
        yield _figure(one, first, last)


def _figure(series: Series, first: datetime, last: datetime) -> str:
    told = f"{series.values[-1]:g} {series.unit}".strip()
    ranged = f"{min(series.values):g} to {max(series.values):g}, {len(series.values)} values"
    normal = _reference(series)
    label = f"{series.item}, {TABLES[series.table].heading}: {ranged}, last {told}"
    label = escape(", ".join(filter(None, [label, normal])), quote=True)
    return (
        f"<figure><figcaption>{escape(series.item)} <b>{escape(told)}</b></figcaption>"
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'preserveAspectRatio="none">{_drawn(series, first, last)}</svg>'
        f"<small>{escape(ranged)}{f'<br>{normal}' if normal else ''}</small></figure>"
    )


def _reference(series: Series) -> str:
    """Return the reference range in words, "" without one."""
    if series.lower is not None and series.upper is not None:
        return f"reference range {series.lower:g} to {series.upper:g}"
    if series.lower is not None:
        return f"reference range from {series.lower:g}"
    return f"reference range up to {series.upper:g}" if series.upper is not None else ""


def _drawn(series: Series, first: datetime, last: datetime) -> str:
    """Return the band of the reference range, the line through the values, and their dots."""
    bounds = [bound for bound in (series.lower, series.upper) if bound is not None]
    low, high = min(series.values + bounds), max(series.values + bounds)
    across = (WIDTH - 2 * EDGE) / max((last - first).total_seconds(), 1)

    def height(value: float) -> float:
        share = (value - low) / (high - low) if high > low else 0.5
        return HEIGHT - EDGE - share * (HEIGHT - 2 * EDGE)

    places = [
        f"{EDGE + (time - first).total_seconds() * across:.1f} {height(value):.1f}"
        for time, value in zip(series.times, series.values, strict=True)
    ]
    band = ""
    if bounds:
        top = 0.0 if series.upper is None else height(series.upper)
        foot = HEIGHT if series.lower is None else height(series.lower)
        band = f'<rect class="band" width="{WIDTH}" y="{top:.1f}" height="{foot - top:.1f}"/>'
    # a dot is a line without a length: it stays round where the page stretches the curve
    dots = "".join(f"M{place}h0" for place in places)
    return f'{band}<path d="M{"L".join(places)}"/><path class="dots" d="{dots}"/>'
