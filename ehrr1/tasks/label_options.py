"""Options of the rules of risk tasks (`data.labels`), on which studies differ."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import polars as pl

from ehrr1.records.schema import TABLES

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

ED_DELAY = {"hour": HOUR, "triage": timedelta(seconds=1)}
"""Time from arrival to the prediction of ED tasks; triage is known after 1 s (`schema`)."""
PLANNED = ("ELECTIVE", "SURGICAL SAME DAY ADMISSION")
"""Types of admissions that were planned."""
HAND_OFF = DAY
"""Maximum time from a discharge to an admission that continues the care, like a transfer."""

IndexStay = Literal["against_advice", "hospice", "transfer", "observation"]
INDEX_STAYS: dict[str, pl.Expr] = {
    "against_advice": pl.col("discharge_location") == "AGAINST ADVICE",
    "hospice": pl.col("discharge_location") == "HOSPICE",
    "transfer": pl.col("discharge_location") == "ACUTE HOSPITAL",
    "observation": pl.col("admission_type").is_in(TABLES["admissions"].late_items),
}
"""Stays that studies of readmission treat differently, by their end or their beginning."""


@dataclass(frozen=True)
class LabelOptions:
    """The options of the rules (`data.labels`)."""

    ed_time: Literal["hour", "triage"] = "hour"
    """Prediction time of ED visits: `ED_DELAY` after arrival."""
    died_in_stay: Literal["released", "exclude"] = "released"
    """Treatment of deaths within the window of the outcome: counted as "no", or left out.

    This concerns a death inside the window of a length of stay, or after intensive care without a
    return to it.
    """
    planned: Literal["count", "exclude"] = "count"
    """Whether a planned admission (`PLANNED`) counts as a readmission; `exclude` ignores it."""
    transfers: Literal["count", "merge"] = "count"
    """Whether an admission within `HAND_OFF` of a discharge counts as a readmission.

    `merge` considers it part of the same stay, for which the question is posed at the end of its
    last part.
    """
    leave_out: tuple[IndexStay, ...] = ()
    """Kinds of stays (`INDEX_STAYS`) that have no readmission sample."""

    @property
    def left_out(self) -> frozenset[str]:
        """Return the conditions of `Rule.noted` that leave a candidate out."""
        names: list[str] = [*self.leave_out]
        names += ["died_in_window"] if self.died_in_stay == "exclude" else []
        names += ["handed_off"] if self.transfers == "merge" else []
        return frozenset(names)


DEFAULT = LabelOptions()
