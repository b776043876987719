"""An EHRSHOT patient as Markdown: demographics, then one event per day, visit and OMOP table.

    ## Patient Demographics [None]
    - Anchor_Age: 61
    - Gender: F

    ## Measurement [2015-03-01 08:10:00]
    | Item_Name | Value | Unit |
    | ------ | ------ | ------ |
    | Creatinine | 1.1 | mg/dL |

An event is dated by its first row; identical rows of an event are shown once.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import NamedTuple

from ehrr1.records.markdown import table_cell

BIRTH_CODES = ("SNOMED/3950001", "MEDS_BIRTH")
PERSON_TABLE = "person"
PERSON_CODES = {"gender": "Gender", "race": "Race", "ethnicity": "Ethnicity"}
"""Prefix of the codes of a demographic -> its key."""

DEMOGRAPHICS = "## Patient Demographics [None]"
YEAR_DAYS = 365.25


class CodedRow(NamedTuple):
    """A row of `ehrshot_files.event_batches`, without its patient."""

    time: datetime | None
    code: str
    value: str
    unit: str
    visit: str
    table: str


def person_key(code: str) -> str | None:
    """Return the key of a code's demographic (Gender for `Gender/F` or `GENDER//F`), or None."""
    return PERSON_CODES.get(code.split("/", 1)[0].lower())


@dataclass
class PatientText:
    """One patient's rows, from which `record` returns the part known at a time.

    The Markdown of whole days is cached. `names` are the descriptions of codes; a code without a
    description is shown itself.
    """

    rows: Sequence[CodedRow]
    names: Mapping[str, str]
    _person: list[CodedRow] = field(init=False, repr=False)
    _events: list[CodedRow] = field(init=False, repr=False)
    _times: list[datetime] = field(init=False, repr=False)
    _days: dict[tuple[int, int], str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._person = [row for row in self.rows if _is_person(row)]
        timed = [row for row in self.rows if row.time is not None and not _is_person(row)]
        self._events = sorted(timed)
        self._times = [row.time for row in self._events if row.time is not None]

    def record(self, time: datetime, max_events: int) -> tuple[str, int, int] | None:
        """Return the newest `max_events` rows at or before `time` as Markdown.

        Returns the text, the number of rows shown, and the number of older rows left out; None if
        no row is known.
        """
        end = bisect_right(self._times, time)
        if not end:
            return None
        begin = max(0, end - max_events)
        parts = [self._demographics(time)]
        place = begin
        for _, day in groupby(self._times[begin:end], key=datetime.date):
            until = place + sum(1 for _ in day)
            parts.append(self._day(place, until))
            place = until
        return "\n\n".join(parts), end - begin, begin

    def _day(self, begin: int, end: int) -> str:
        if (begin, end) not in self._days:
            groups: dict[tuple[str, str], list[CodedRow]] = {}
            for row in self._events[begin:end]:
                groups.setdefault((row.table, row.visit), []).append(row)
            texts = [_event(table, rows, self.names) for (table, _), rows in groups.items()]
            self._days[begin, end] = "\n\n".join(texts)
        return self._days[begin, end]

    def _demographics(self, time: datetime) -> str:
        lines = [DEMOGRAPHICS]
        born = [row.time for row in self._person if row.code in BIRTH_CODES and row.time]
        born = born or [row.time for row in self._person if row.table == PERSON_TABLE and row.time]
        if born:
            lines.append(f"- Anchor_Age: {int((time - min(born)).days / YEAR_DAYS)}")
        rows = {key: row for row in self._person if (key := person_key(row.code))}
        for key in PERSON_CODES.values():
            if key in rows:
                code = rows[key].code
                own = code.rsplit("/", 1)[-1]
                told_as = own if key == "Gender" else self.names.get(code, own)
                lines.append(f"- {key}: {_one_line(told_as)}")
        return "\n".join(lines)


def _is_person(row: CodedRow) -> bool:
    return row.table == PERSON_TABLE or row.code in BIRTH_CODES or person_key(row.code) is not None


def _event(table: str, rows: Sequence[CodedRow], names: Mapping[str, str]) -> str:
    """Return the Markdown of one event, without columns that are empty in all rows."""
    heading = _one_line(table.replace("_", " ").title()) or "Medical Events"
    lines = [f"## {heading} [{rows[0].time:%Y-%m-%d %H:%M:%S}]"]
    shown = {"Item_Name": [_one_line(names.get(row.code, row.code)) for row in rows]}
    shown |= {"Value": [_one_line(r.value) for r in rows]}
    shown |= {"Unit": [_one_line(r.unit) for r in rows]}
    shown = {key: cells for key, cells in shown.items() if any(cells)}
    cells = list(dict.fromkeys(zip(*shown.values(), strict=True)))
    if len(cells) == 1:
        lines += [f"- {key}: {cell}".rstrip() for key, cell in zip(shown, cells[0], strict=True)]
    else:
        lines += [f"| {' | '.join(shown)} |", f"|{' ------ |' * len(shown)}"]
        lines += [f"| {' | '.join(map(table_cell, row))} |" for row in cells]
    return "\n".join(lines)


def _one_line(text: str) -> str:
    return " ".join(text.split())
