"""Risk tasks under the strict protocol: cohorts, prediction times, exclusions and outcomes.

The prediction time is a function of what is known for every candidate and never of the outcome.
Candidates whose outcome has already occurred by then are left out and counted by reason.
`docs/tasks.md` describes the rules; MIMIC-IV has no end of follow-up, so that a patient without a
further record counts as "no".
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import polars as pl

from ehrr1.records.hindsight import END
from ehrr1.tasks.label_options import (
    DAY,
    DEFAULT,
    ED_DELAY,
    HAND_OFF,
    HOUR,
    INDEX_STAYS,
    PLANNED,
    LabelOptions,
)

STAY_DELAY = DAY
"""Time from the start of a hospital or ICU stay to the prediction time of its tasks."""

T = pl.col("prediction_time")
Frames = Mapping[str, pl.DataFrame]


@dataclass(frozen=True)
class Rule:
    """A cohort, the answer, and the reasons to leave a candidate out (the first counts)."""

    cohort: str
    label: pl.Expr
    exclude: Mapping[str, pl.Expr]
    needs: tuple[str, ...] = ()
    """Tables without which the task is dropped."""
    noted: Mapping[str, pl.Expr] = field(default_factory=dict)
    """Conditions to count among the samples; those of `LabelOptions.left_out` are excluded."""


def _before(time: pl.Expr, limit: pl.Expr) -> pl.Expr:
    """Return whether `time` is at or before `limit`, False if it is null."""
    return (time <= limit).fill_null(False)


def _within(name: str, days: int) -> pl.Expr:
    return _before(pl.col(name), T + days * DAY)


def _after(start: str, days: int) -> pl.Expr:
    return pl.col(start) + days * DAY


_DIED = _before(pl.col("death_time"), T)
_LEFT = {"no_outtime": pl.col("outtime").is_null(), "left_by_then": _before(pl.col("outtime"), T)}
_ED = {**_LEFT, "died_by_then": _DIED}
_ED_ICU = {**_ED, "in_icu_by_then": _before(pl.col("icu_intime"), T)}
_ED_DEATH = pl.col("hospital_death").is_not_null() | (pl.col("disposition") == "EXPIRED").fill_null(
    False
)
_ED_TO_ICU = _before(pl.col("icu_intime"), pl.col("outtime") + 12 * HOUR)
_ED_AND_ICU = ("edstays", "icustays")
_ADMITTED = {
    "no_end_of_stay": pl.col(END).is_null(),
    "inside_another_stay": pl.col("nested"),
    "died_by_then": _before(pl.col("hospital_death"), T),
    "left_by_then": _before(pl.col(END), T),
}
_IN_ICU = {
    "no_outtime": pl.col("outtime").is_null(),
    "died_by_then": _DIED,
    "left_by_then": ~pl.col("still_there"),
}
_STAY_END = pl.min_horizontal(END, "hospital_death")

RULES: dict[str, Rule] = {
    "ED_Hospitalization": Rule(
        "ed_visit",
        pl.col("hadm_id").is_not_null(),
        {**_ED, "admitted_by_then": _before(pl.col("admittime"), T)},
        ("edstays",),
    ),
    "ED_Inpatient_Mortality": Rule("ed_visit", _ED_DEATH, _ED, ("edstays",)),
    "ED_ICU_Tranfer_12hour": Rule("ed_visit", _ED_TO_ICU, _ED_ICU, _ED_AND_ICU),
    "ED_Critical_Outcomes": Rule("ed_visit", _ED_DEATH | _ED_TO_ICU, _ED_ICU, _ED_AND_ICU),
    "ED_Reattendance_3day": Rule(
        "ed_leaving",
        _within("next_ed_intime", 3),
        {
            "no_outtime": pl.col("outtime").is_null(),
            "not_sent_home": (pl.col("disposition") != "HOME").fill_null(True)
            | _before(pl.col("admittime"), T),
            "died_by_then": _DIED,
        },
        ("edstays",),
    ),
    **{
        f"Readmission_{days}day": Rule(
            "discharge",
            _within("next_admittime", days),
            {
                "no_end_of_stay": pl.col(END).is_null(),
                "inside_another_stay": pl.col("nested"),
                "died_in_hospital": pl.col("hospital_death").is_not_null() | _DIED,
                "admitted_by_then": pl.col("another_goes_on"),
                "died_in_window": _within("death_time", days) & ~_within("next_admittime", days),
            },
            noted={"handed_off": _before(pl.col("next_admittime"), T + HAND_OFF), **INDEX_STAYS},
        )
        for days in (30, 60)
    },
    "Inpatient_Mortality": Rule("admission", pl.col("hospital_death").is_not_null(), _ADMITTED),
    **{
        f"LengthOfStay_{days}day": Rule(
            "admission",
            pl.col("admittime") + days * DAY < _STAY_END,
            _ADMITTED,
            noted={"died_in_window": _before(pl.col("hospital_death"), _after("admittime", days))},
        )
        for days in (3, 7)
    },
    **{
        f"ICU_Mortality_{days}day": Rule(
            "icu_stay", _within("death_time", days), _IN_ICU, ("icustays",)
        )
        for days in (1, 2, 3, 7, 14)
    },
    **{
        f"ICU_Stay_{days}day": Rule(
            "icu_stay",
            pl.col("outtime") - pl.col("intime") >= days * DAY,
            _IN_ICU,
            ("icustays",),
            {"died_in_window": _before(pl.col("death_time"), _after("intime", days))},
        )
        for days in (7, 14)
    },
    "ICU_Readmission": Rule(
        "icu_stay",
        pl.col("next_icu_intime").is_not_null(),
        {**_IN_ICU, "died_in_icu": _before(pl.col("death_time"), pl.col("outtime"))},
        ("icustays",),
        {
            "died_in_window": pl.col("hospital_death").is_not_null()
            & pl.col("next_icu_intime").is_null()
        },
    ),
}

SAMPLE_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    **dict.fromkeys(("subject_id", "hadm_id", "stay_id"), pl.Int64),
    **dict.fromkeys(("prediction_time", "window_start"), pl.Datetime("us")),
    **dict.fromkeys(("current_hadm", "hidden_hadm", "ed_stay"), pl.Int64),
    "task": pl.String,
    "label": pl.Boolean,
}


@dataclass
class RiskSamples:
    """Samples of the risk tasks (columns: `SAMPLE_SCHEMA`) and counts of what was left out."""

    frame: pl.DataFrame
    excluded: dict[str, int]
    """`<task>/<reason>` -> number of candidates left out."""
    noted: dict[str, int]
    """`<condition>/<task>` -> number of samples for which the condition holds (`Rule.noted`)."""


def risk_samples(
    parents: Frames, tasks: Collection[str], options: LabelOptions = DEFAULT
) -> RiskSamples:
    """Return the risk samples of `tasks`.

    `parents` are patients, admissions, edstays and icustays (the last two may be missing), as in
    `records.mimic.MimicFolder.parents`.
    """
    candidates = cohorts(parents, options)
    parts: list[pl.DataFrame] = [pl.DataFrame(schema=SAMPLE_SCHEMA)]
    excluded: dict[str, int] = {}
    noted: dict[str, int] = {}
    for task, rule in RULES.items():
        if task not in tasks or any(table not in parents for table in rule.needs):
            continue
        reason = pl.coalesce(
            *(pl.when(condition).then(pl.lit(name)) for name, condition in rule.exclude.items())
        )
        checked = candidates[rule.cohort].with_columns(reason.alias("reason"))
        for name, count in checked["reason"].drop_nulls().value_counts().iter_rows():
            excluded[f"{task}/{name}"] = count
        asked = checked.filter(pl.col("reason").is_null())
        for name, condition in rule.noted.items():
            holds = condition.fill_null(False)
            count = asked.filter(holds).height
            if name in options.left_out:
                asked = asked.filter(~holds)
                excluded[f"{task}/{name}"] = excluded.get(f"{task}/{name}", 0) + count
            else:
                noted[f"{name}/{task}"] = count
        named = asked.with_columns(pl.lit(task).alias("task"), rule.label.alias("label"))
        parts.append(named.select(*SAMPLE_SCHEMA))
    return RiskSamples(pl.concat(parts), excluded, noted)


def cohorts(parents: Frames, options: LabelOptions = DEFAULT) -> dict[str, pl.DataFrame]:
    """Return each cohort's candidates with prediction time and the columns that rules use."""
    admissions = _with_deaths(parents["admissions"], parents["patients"])
    cohorts = {"admission": _admission(admissions), "discharge": _discharge(admissions, options)}
    if "edstays" in parents:
        visits = _ed_visits(parents, admissions)
        cohorts["ed_leaving"] = _timed_ed(visits, pl.col("outtime"))
        cohorts["ed_visit"] = _timed_ed(visits, pl.col("intime") + ED_DELAY[options.ed_time])
    if "icustays" in parents:
        cohorts["icu_stay"] = _icu_stays(parents["icustays"], admissions)
    return cohorts


def _with_deaths(admissions: pl.DataFrame, patients: pl.DataFrame) -> pl.DataFrame:
    """Add `hospital_death` (in this stay) and `death_time` (of the patient, anywhere).

    `dod` is a date: a death outside the hospital is assumed at the end of that day.
    """
    flagged = pl.when(pl.col("hospital_expire_flag") == "1").then(pl.col(END))
    admissions = admissions.filter(pl.col("admittime").is_not_null()).with_columns(
        pl.coalesce("deathtime", flagged).alias("hospital_death")
    )
    admissions = admissions.join(_death_times(admissions, patients), on="subject_id", how="left")
    return _with_overlaps(admissions)


def _with_overlaps(admissions: pl.DataFrame) -> pl.DataFrame:
    """Add `nested` and `another_goes_on`.

    `nested`: the stay lies inside another stay of the patient, which is the candidate instead.
    `another_goes_on`: another stay of the patient is in progress when this one ends.
    """
    stay = admissions.select("subject_id", "hadm_id", begin="admittime", end=END)
    both = stay.join(stay, on="subject_id", suffix="_of_other")
    begin, end, hadm = (pl.col(f"{name}_of_other") for name in ("begin", "end", "hadm_id"))
    inside = (begin <= pl.col("begin")) & (end >= pl.col("end"))
    larger = (begin < pl.col("begin")) | (end > pl.col("end")) | (hadm < pl.col("hadm_id"))
    goes_on = (begin <= pl.col("end")) & (end > pl.col("end"))
    other = hadm != pl.col("hadm_id")
    found = both.group_by("hadm_id").agg(
        (other & inside & larger).any().alias("nested"),
        (other & goes_on).any().alias("another_goes_on"),
    )
    return admissions.join(found, on="hadm_id", how="left", maintain_order="left").with_columns(
        pl.col("nested", "another_goes_on").fill_null(False)
    )


def _death_times(admissions: pl.DataFrame, patients: pl.DataFrame) -> pl.DataFrame:
    in_hospital = admissions.group_by("subject_id").agg(pl.col("hospital_death").max())
    dod = pl.col("dod").dt.truncate("1d") + DAY
    return patients.join(in_hospital, on="subject_id", how="left").select(
        "subject_id", pl.coalesce("hospital_death", dod).alias("death_time")
    )


def _admission(admissions: pl.DataFrame) -> pl.DataFrame:
    return _sampled(admissions, pl.col("admittime") + STAY_DELAY)


def _discharge(admissions: pl.DataFrame, options: LabelOptions) -> pl.DataFrame:
    later = admissions
    if options.planned == "exclude":
        later = admissions.filter(~pl.col("admission_type").is_in(PLANNED).fill_null(False))
    following = _next(admissions, END, later, "admittime", "next_admittime")
    return _sampled(following, pl.col(END))


def _sampled(
    frame: pl.DataFrame,
    time: pl.Expr,
    *,
    window_start: pl.Expr | None = None,
    hidden_hadm: pl.Expr | None = None,
    ed: bool = False,
) -> pl.DataFrame:
    """Add the columns of a sample except task and label.

    Without `window_start` it is null, and the index sets it.
    """
    null_id, null_time = pl.lit(None, pl.Int64), pl.lit(None, pl.Datetime("us"))
    own_stay = pl.col("stay_id") if "stay_id" in frame.columns else null_id
    return frame.with_columns(
        time.alias("prediction_time"), own_stay.alias("stay_id")
    ).with_columns(
        (null_time if window_start is None else window_start).alias("window_start"),
        (null_id if ed else pl.col("hadm_id")).alias("current_hadm"),
        (null_id if hidden_hadm is None else hidden_hadm).alias("hidden_hadm"),
        (pl.col("stay_id") if ed else null_id).alias("ed_stay"),
    )


def _ed_visits(parents: Frames, admissions: pl.DataFrame) -> pl.DataFrame:
    """Return ED stays with their admission, the next ICU entry, the next visit and the death."""
    stays = parents["edstays"].filter(pl.col("intime").is_not_null())
    linked = admissions.select("subject_id", "hadm_id", "admittime", "hospital_death")
    deaths = _death_times(admissions, parents["patients"])
    stays = stays.join(linked, on=["subject_id", "hadm_id"], how="left")
    stays = stays.join(deaths, on="subject_id", how="left")
    stays = _next(stays, "outtime", stays, "intime", "next_ed_intime")
    if "icustays" in parents:
        icu = parents["icustays"]
        stays = _next(stays, "intime", icu, "intime", "icu_intime", exact=True)
    return stays


def _timed_ed(visits: pl.DataFrame, time: pl.Expr) -> pl.DataFrame:
    """Return samples whose window is the visit so far.

    An admission that has not begun by the prediction time is hidden.
    """
    hidden = pl.when(~_before(pl.col("admittime"), T)).then(pl.col("hadm_id"))
    intime = pl.col("intime")
    return _sampled(visits, time, window_start=intime, hidden_hadm=hidden, ed=True)


def _icu_stays(icustays: pl.DataFrame, admissions: pl.DataFrame) -> pl.DataFrame:
    """Return ICU stays of an admission, where stays less than 24 h apart are merged.

    `still_there`: the patient is in a unit at the prediction time. A later return is unknown by
    then and does not count.
    """
    stay = ["subject_id", "hadm_id"]
    ordered = icustays.filter(pl.col("intime").is_not_null()).sort(*stay, "intime", "stay_id")
    last_out = pl.col("outtime").cum_max().shift().over(stay)
    starts = (pl.col("intime") - last_out > DAY).fill_null(True)
    ordered = ordered.with_columns(starts.cum_sum().over(stay).alias("part"))
    own = [*stay, "part"]
    start = pl.col("intime").min().over(own) + STAY_DELAY
    holds = (pl.col("intime") <= start) & (pl.col("outtime") >= start)
    merged = (
        ordered.with_columns(holds.fill_null(False).alias("holds"))
        .group_by(own, maintain_order=True)
        .agg(
            pl.col("stay_id").first(),
            pl.col("intime").min(),
            pl.when(pl.col("outtime").is_not_null().all()).then(pl.col("outtime").max()),
            pl.col("holds").any().alias("still_there"),
        )
        .with_columns(pl.col("intime").shift(-1).over(stay).alias("next_icu_intime"))
        # Without an admission there is no "same hospital stay" to return in.
        .with_columns(pl.when(pl.col("hadm_id").is_not_null()).then(pl.col("next_icu_intime")))
    )
    deaths = admissions.group_by("subject_id").agg(pl.col("death_time").first())
    merged = merged.join(deaths, on="subject_id", how="left")
    in_hospital = admissions.select("subject_id", "hadm_id", "hospital_death")
    merged = merged.join(in_hospital, on=stay, how="left")
    return _sampled(merged, pl.col("intime") + STAY_DELAY)


def _next(
    frame: pl.DataFrame, after: str, others: pl.DataFrame, time: str, name: str, exact: bool = False
) -> pl.DataFrame:
    """Add `name`: the patient's first `time` in `others` after `after` (`exact`: or at it)."""
    later = others.select("subject_id", pl.col(time).alias(name)).drop_nulls().sort(name)
    known = frame.filter(pl.col(after).is_not_null()).sort(after)
    found = known.join_asof(
        later,
        left_on=after,
        right_on=name,
        by="subject_id",
        strategy="forward",
        allow_exact_matches=exact,
        check_sortedness=False,
    )
    unknown = frame.filter(pl.col(after).is_null())
    return pl.concat([found, unknown], how="diagonal")
