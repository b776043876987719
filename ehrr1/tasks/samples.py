"""Samples: what `stage=prepare` leaves behind, and how later stages read it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ehrr1.records.events import Event


@dataclass(frozen=True, slots=True)
class Sample:
    """One question on one record at one prediction time.

    `context_id` is equal for samples whose context is the same events: they share one trunk.
    `target` is the answer: distinct item names in order of record, or ("yes",) / ("no",).
    """

    sample_id: str
    subject_id: int
    hadm_id: int | None
    stay_id: int | None
    task: str
    split: str
    prediction_time: datetime
    context_id: str
    target: tuple[str, ...]


class Prepared:
    """The folder of a finished `stage=prepare`: the store and the index of samples."""

    def __init__(self, folder: Path):
        self.folder = folder

    def samples(
        self, split: str | None = None, tasks: Sequence[str] | None = None
    ) -> list[Sample]:
        """The samples of a split ("train", "validation", "test"; None for all), in a fixed order."""
        raise NotImplementedError

    def context(self, sample: Sample) -> list[Event]:
        """What was known: demographics, earlier stays' summary, admission event, then the window.

        Oldest first. The first `preamble_length` events are never cut; later ones are cut oldest
        first when a context is too long (see `prompts`).
        """
        raise NotImplementedError
