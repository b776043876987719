"""Faults planted into the code that makes contexts: `stage=audit` must find each, and fail."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ehrr1 import runs
from ehrr1.audit.single_features import find_rules
from ehrr1.errors import LeakError
from ehrr1.files import read_json, write_json
from ehrr1.records import hindsight, markdown, mimic
from ehrr1.records.schema import TABLES
from ehrr1.stages import audit
from ehrr1.tasks import context, labels
from tests.settings import composed, record
from tests.test_records import configured, hospital, prepared, write_tables
from tests.test_tasks import DAY, START, hand_made, lab, stay
from tests.test_tasks import HOUR as HOURS

__all__ = ["hospital"]  # a fixture

TASKS = [
    *("emar", "transfers", "prescriptions", "next_event", "diagnoses_icd", "inputevents"),
    *("ED_Hospitalization", "ICU_Stay_7day", "Readmission_30day", "Inpatient_Mortality"),
]
HOUR = 3_600_000_000

Plant = Callable[[pytest.MonkeyPatch], None]
Frame = pl.DataFrame


def an_hour_later(patch: pytest.MonkeyPatch) -> None:
    limit = context._limit
    patch.setattr(context, "_limit", lambda cut: limit(cut) + HOUR)


def known_when_it_happens(patch: pytest.MonkeyPatch) -> None:
    with_knowledge = mimic._with_knowledge

    def at_once(frame: Frame, table: Any) -> Frame:
        known = with_knowledge(frame, table)
        return known.with_columns(pl.col("event_time").alias("available_time"))

    patch.setattr(mimic, "_with_knowledge", at_once)


def own_codes_at_dischtime(patch: pytest.MonkeyPatch) -> None:
    def ends(admissions: Frame, *_: object) -> Frame:
        return admissions.with_columns(pl.col("dischtime").alias(hindsight.END))

    patch.setattr(hindsight, "stay_ends", ends)
    patch.setattr(context, "_own_codes", lambda _, found, __: np.zeros(len(found), dtype=bool))


def nothing_of_the_coming_admission_is_hidden(patch: pytest.MonkeyPatch) -> None:
    timed = labels._timed_ed

    def shown(visits: Frame, time: pl.Expr) -> Frame:
        return timed(visits, time).with_columns(pl.lit(None, pl.Int64).alias("hidden_hadm"))

    patch.setattr(labels, "_timed_ed", shown)


def discharge_location_is_shown(patch: pytest.MonkeyPatch) -> None:
    key = "Discharge_Location"
    patch.setitem(TABLES["admissions"].keys, key, ("discharge_location",))
    patch.setitem(markdown._KEYS, "admissions", (*markdown._KEYS["admissions"], key))
    patch.setitem(markdown._LINES, "admissions", (*markdown._LINES["admissions"], f"- {key}: "))


def emergency_visits_are_asked_by_their_outcome(patch: pytest.MonkeyPatch) -> None:
    timed = labels._timed_ed

    def later_for_the_admitted(visits: Frame, time: pl.Expr) -> Frame:
        more = pl.when(pl.col("hadm_id").is_not_null()).then(timedelta(minutes=30))
        return timed(visits, time + more.otherwise(timedelta(0)))

    patch.setattr(labels, "_timed_ed", later_for_the_admitted)


def totals_at_once(patch: pytest.MonkeyPatch) -> None:
    with_knowledge = mimic._with_knowledge

    def never_late(frame: Frame, table: Any) -> Frame:
        return with_knowledge(frame, table).with_columns(
            pl.lit(None, pl.Datetime("us")).alias("late_time")
        )

    patch.setattr(mimic, "_with_knowledge", never_late)


def decisions_see_their_own_event(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(context, "_limit", lambda cut: context._micros(cut.prediction_time) + 1)


def prescriptions_at_their_start(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(hindsight, "entered", lambda frame, _: (frame, pl.Series([], dtype=pl.Int64)))


def types_before_they_are_decided(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(context, "_LATE", [()] * len(context.ORDER))


FAULTS: dict[Plant, set[str]] = {
    an_hour_later: {"early"},
    known_when_it_happens: {"early"},
    own_codes_at_dischtime: {"early", "prediction_time"},
    discharge_location_is_shown: {"never_shown"},
    emergency_visits_are_asked_by_their_outcome: {"prediction_time"},
    totals_at_once: {"total"},
    decisions_see_their_own_event: {"early"},
    prescriptions_at_their_start: {"early"},
    types_before_they_are_decided: {"type_of_stay"},
}
"""What is planted -> what the raw files say of it."""


def audited(hospital: Path, folder: Path) -> audit.Metrics:
    """`stage=prepare`, then `stage=audit`, as runs; the metrics of the audit."""
    _, counts = prepared(hospital, folder / "prepare", tasks=TASKS)
    record(configured(hospital, tasks=TASKS), folder / "prepare")
    write_json(folder / "prepare" / "metrics.json", counts)
    cfg = composed(
        *("name=test", "audit.text_samples_per_task=60", "audit.rule_samples_per_task=0"),
        output_root=str(folder),
        inputs={"prepare": str(folder / "prepare")},
    )
    with runs.opened(cfg, "audit") as run:
        assert run is not None
        return audit.run(cfg, run)


def test_nothing_is_found_where_nothing_is_planted(hospital: Path, tmp_path: Path) -> None:
    assert audited(hospital, tmp_path)["contexts_rechecked"] > 300


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_the_audit_finds(
    plant: Plant, hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(LeakError):
        audited(hospital, tmp_path)
    metrics = read_json(tmp_path / "test" / "audit" / "metrics.json")
    found = {kind for kind in audit.KINDS if metrics[f"recheck/{kind}"]}
    assert FAULTS[plant] <= found


def test_the_audit_finds_what_tells_of_a_coming_admission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    visit = {"subject_id": 1, "stay_id": 31, "hadm_id": 11, "intime": START, "gender": "F"}
    order = {"subject_id": 1, "hadm_id": 11, "order_type": "Lab", "ordertime": START + HOURS / 3}
    tables = hand_made(
        [lab(1, str(START + HOURS / 2))],
        hosp__admissions=[stay(11, START + 3 * HOURS, START + 5 * DAY)],
        ed__edstays=[{**visit, "outtime": START + 4 * HOURS, "disposition": "ADMITTED"}],
        hosp__poe=[order],
    )
    root = write_tables(tmp_path / "hospital", tables)
    assert audited(root, tmp_path / "right")["contexts_rechecked"]
    nothing_of_the_coming_admission_is_hidden(monkeypatch)
    with pytest.raises(LeakError, match="coming_admission 1"):
        audited(root, tmp_path / "wrong")


@pytest.mark.parametrize("planted", [False, True])
def test_a_rule_that_is_too_good_is_listed(
    planted: bool, hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Codes that appear at `dischtime` tell that the next transfer is the discharge."""
    if planted:
        own_codes_at_dischtime(monkeypatch)
    world, _ = prepared(hospital, tmp_path, tasks=["transfers", "emar"])
    found = find_rules(world, world.index(), 300, 0)
    rules = found.filter(pl.col("answer") == "discharge")
    codes = rules.filter(pl.col("feature").str.starts_with("diagnoses_icd of the last"))
    assert codes.height == (2 if planted else 0)
    if planted:
        best = codes.sort("recall").row(-1, named=True)
        assert best["precision"] > 0.95 and best["recall"] > 0.9 and best["support"] >= 20
