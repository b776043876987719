"""Texts of many records: each event of a patient is printed once for all contexts that show it."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from ehrr1.prompts.wording import BETWEEN, Wording
from ehrr1.tasks.context import EPOCH, EventKey, each_event, known_times, shown_parts
from ehrr1.tasks.samples import Prepared, Sample


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
        self._printed: dict[EventKey, str] = {}
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
        printed = each_event(rows, parts, self._printed, self.style.printed)
        known_at = known_times(
            rows, parts.positions, rows.late_time[parts.positions] >= parts.limit
        )
        until = EPOCH + timedelta(microseconds=int(known_at.max())) if len(known_at) else None
        return RecordText(BETWEEN.join([self.style.printed(parts.demographics), *printed]), until)
