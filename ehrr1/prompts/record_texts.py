"""Texts of many records: each event of a patient is printed once for all contexts that show it.

Contexts of a patient overlap almost entirely: from one question to the next a few rows become
known, and a few leave the window.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np

from ehrr1.prompts.wording import BETWEEN, Wording
from ehrr1.records.store import Shard
from ehrr1.tasks.context import EPOCH, Parts, grouped_events, known_times, shown_parts
from ehrr1.tasks.samples import Prepared, Sample

Key = bytes | tuple[bytes, bytes]
"""The positions of an event's rows, and which of them show no late values, if there are any."""


@dataclass(frozen=True, slots=True)
class RecordText:
    """A record as it is shown, and when the last of it became known (None: without a time)."""

    text: str
    available_until: datetime | None


class RecordTexts:
    """Function from a sample to its record in one wording, fast where a patient's are adjacent.

    The texts are those of `Wording.record(Prepared.context(sample))`. Printed events are kept until
    the next patient's first sample.
    """

    def __init__(self, prepared: Prepared, style: Wording):
        self.prepared = prepared
        self.style = style
        self._printed: dict[Key, str] = {}
        self._subject: int | None = None

    def __call__(self, sample: Sample) -> RecordText:
        """Return the record of a sample."""
        if sample.text_row is not None or sample.period_end:
            events = self.prepared.context(sample)
            known = [event.available_time for event in events if event.available_time is not None]
            return RecordText(self.style.record(events), max(known, default=None))
        if sample.subject_id != self._subject:
            self._printed.clear()
            self._subject = sample.subject_id
        rows, patient = self.prepared.store.find(sample.subject_id)
        parts = shown_parts(rows, patient, sample)
        still_late = rows.late_time[parts.positions] >= parts.limit
        keys = _keys(parts, still_late)
        self._print_missing(rows, parts, keys)
        known_at = known_times(rows, parts.positions, still_late)
        until = EPOCH + timedelta(microseconds=int(known_at.max())) if len(known_at) else None
        texts = [self.style.printed(parts.demographics), *(self._printed[key] for key in keys)]
        return RecordText(BETWEEN.join(texts), until)

    def _print_missing(self, rows: Shard, parts: Parts, keys: list[Key]) -> None:
        """Print the events that no earlier context of the patient has shown."""
        missing = [number for number, key in enumerate(keys) if key not in self._printed]
        if not missing:
            return
        ends = np.append(parts.starts[1:], len(parts.positions))
        own = [parts.positions[parts.starts[number] : ends[number]] for number in missing]
        starts = np.cumsum([0, *map(len, own[:-1])])
        events = grouped_events(rows, np.concatenate(own), starts, parts.limit)
        for number, event in zip(missing, events, strict=True):
            self._printed[keys[number]] = self.style.printed(event)


def _keys(parts: Parts, still_late: np.ndarray) -> list[Key]:
    """Return what determines the text of each event, among those of one patient."""
    if not len(parts.starts):
        return []
    size = parts.positions.itemsize
    places, marks = parts.positions.tobytes(), still_late.tobytes()
    begins = parts.starts.tolist()
    ends = [*begins[1:], len(parts.positions)]
    late = np.logical_or.reduceat(still_late, parts.starts).tolist()
    return [
        (places[size * a : size * b], marks[a:b]) if own_late else places[size * a : size * b]
        for a, b, own_late in zip(begins, ends, late, strict=True)
    ]
