"""What users may choose of the rules of risk tasks (`data.labels`), where studies differ."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import polars as pl

from ehrr1.records.schema import TABLES

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

ED_DELAY = {"hour": HOUR, "triage": timedelta(seconds=1)}
"""ED tasks are asked so long after arrival; triage is known one second after it (`schema`)."""
PLANNED = ("ELECTIVE", "SURGICAL SAME DAY ADMISSION")
"""Types of admissions that were arranged beforehand."""
HAND_OFF = DAY
"""An admission that follows a discharge so soon continues the care: a transfer on paper."""

IndexStay = Literal["against_advice", "hospice", "transfer", "observation"]
INDEX_STAYS: dict[str, pl.Expr] = {
    "against_advice": pl.col("discharge_location") == "AGAINST ADVICE",
    "hospice": pl.col("discharge_location") == "HOSPICE",
    "transfer": pl.col("discharge_location") == "ACUTE HOSPITAL",
    "observation": pl.col("admission_type").is_in(TABLES["admissions"].late_items),
}
"""Stays that studies of readmission treat in different ways, by how they ended or began."""


@dataclass(frozen=True)
class LabelOptions:
    """What users may choose of the rules (`data.labels`)."""

    ed_time: Literal["hour", "triage"] = "hour"
    """When ED visits are asked about: `ED_DELAY` after arrival."""
    died_in_stay: Literal["released", "exclude"] = "released"
    """Whether a death inside the window of a length of stay, or after intensive care without a
    return to it, counts as "no" or is left out."""
    planned: Literal["count", "exclude"] = "count"
    """Whether a planned admission (`PLANNED`) is a readmission; `exclude` looks past it."""
    transfers: Literal["count", "merge"] = "count"
    """Whether an admission within `HAND_OFF` of a discharge is a readmission; `merge` takes it for
    the same stay, which is asked about when its last part is over."""
    leave_out: tuple[IndexStay, ...] = ()
    """Kinds of stays after which nobody is asked about a readmission (`INDEX_STAYS`)."""

    @property
    def left_out(self) -> frozenset[str]:
        """The conditions of `Rule.noted` that leave a candidate out."""
        names: list[str] = [*self.leave_out]
        names += ["died_in_window"] if self.died_in_stay == "exclude" else []
        names += ["handed_off"] if self.transfers == "merge" else []
        return frozenset(names)


DEFAULT = LabelOptions()
