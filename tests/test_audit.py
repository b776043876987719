"""stage=audit: it finds what is shown too early, and nothing under the strict protocol."""

import json
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ehrr1 import runs
from ehrr1.audit import index_checks, leakage
from ehrr1.audit.leakage import VIEWS, View, by_table, by_task, find_leaks
from ehrr1.audit.report import draw, notes
from ehrr1.config.schema import Config
from ehrr1.errors import LeakError, UserError
from ehrr1.files import write_json
from ehrr1.records.events import Event
from ehrr1.records.store import Patient, Shard
from ehrr1.runs import Run
from ehrr1.stages import audit
from ehrr1.stages.audit import examine
from ehrr1.tasks import context
from ehrr1.tasks.samples import Prepared, Sample
from tests.conftest import ROOT, CommandLine
from tests.metrics_page import not_on_the_page
from tests.settings import composed, record
from tests.test_records import hospital, prepared, write_tables
from tests.test_tasks import DAY, HOUR, START, hand_made, icu, lab, stay

__all__ = ["hospital"]  # a fixture

TASKS = [
    *("labevents", "emar", "inputevents", "diagnoses_icd", "discharge"),
    *("ED_Hospitalization", "ICU_Mortality_7day", "Readmission_30day"),
]
STRICT = VIEWS["strict"]
PNG = b"\x89PNG\r\n\x1a\n"


def finished(root: Path, folder: Path, **settings: object) -> Prepared:
    """A prepared folder as a run of `stage=prepare` leaves it."""
    world, metrics = prepared(root, folder, **settings)
    record(composed(), folder)
    write_json(folder / "metrics.json", metrics)
    return world


@pytest.fixture(scope="module")
def world(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return finished(hospital, tmp_path_factory.mktemp("audit"), tasks=TASKS)


def one_stay(tmp_path: Path, **tables: list[dict[str, object]]) -> Prepared:
    """One patient, 30 hours in the ICU, a laboratory result every hour, known at once."""
    labs = [lab(n, str(START + n * HOUR)) for n in range(1, 30)]
    own = hand_made(labs, icu__icustays=[icu(31, START, START + 3 * DAY)], **tables)
    return finished(write_tables(tmp_path / "hospital", own), tmp_path / "prepare")


# --- what is known later ----------------------------------------------------------------------


def test_strict_shows_nothing_too_early(world: Prepared) -> None:
    found, _ = examine(world, "strict", 5, 0)
    metrics = audit.flat(found)
    assert found.samples == world.index().height > 1000
    assert set(found.tasks["task"]) == set(TASKS)
    assert all(metrics[f"leaking_samples/{task}"] == 0 for task in TASKS)
    assert metrics["contexts_not_as_judged"] == metrics["patients_in_several_splits"] == 0
    assert audit.problem(found, world.folder) is None
    assert not found.tables.height and not found.examples


def test_a_prediction_time_moved_back_is_found_with_its_hours(tmp_path: Path) -> None:
    world = one_stay(tmp_path)
    before = {sample.sample_id: sample for sample in world.samples()}
    index = world.index(tasks=["ICU_Stay_7day", "ICU_Mortality_1day"])
    moved = index.with_columns(pl.col("prediction_time") - timedelta(hours=10))

    def unmoved(rows: Shard, patient: Patient, sample: Sample) -> np.ndarray:
        return STRICT.positions(rows, patient, before[sample.sample_id])

    # Asked at hour 14: the results of the hours 15 to 24 were not known, that of 14 was.
    found = find_leaks(world, moved, View(unmoved, STRICT.events))
    assert found.contexts == 1
    assert by_task(found).rows() == [
        ("ICU_Mortality_1day", 1, 1, 10, 0, 10.0, 10.0),
        ("ICU_Stay_7day", 1, 1, 10, 0, 10.0, 10.0),
    ]
    assert by_table(found).select("task", "table", "leaking", "rows", "most").rows() == [
        ("ICU_Mortality_1day", "labevents", 1, 10, 10.0),
        ("ICU_Stay_7day", "labevents", 1, 10, 10.0),
    ]
    assert leakage.examples(found, 1)["ICU_Stay_7day"][0].startswith("ICU_Stay_7day/1/31/")


def test_known_at_the_prediction_time_is_too_late_for_a_decision_only(tmp_path: Path) -> None:
    world = one_stay(tmp_path)

    def by_then(rows: Shard, patient: Patient, sample: Sample) -> np.ndarray:
        return STRICT.positions(rows, patient, replace(sample, inclusive=True))

    found = by_task(find_leaks(world, world.index(), View(by_then, STRICT.events)))
    counts = {task: (leaking, most) for task, _, leaking, _, _, _, most in found.rows()}
    # Each shows the result that it asks for.
    assert counts["labevents"] == (29, 0.0)
    assert counts["ICU_Stay_7day"] == (0, None)


def test_totals_of_intervals_that_are_not_over_are_found(tmp_path: Path) -> None:
    drip = {"subject_id": 1, "hadm_id": 11, "stay_id": 31, "itemid": 7, "orderid": 1, "rate": 5}
    drip |= {"amount": "50", "amountuom": "ml", "rateuom": "mL/hour"}
    begin = START + 2 * HOUR
    ended = {**drip, "starttime": begin, "endtime": begin + 10 * HOUR, "storetime": begin}
    world = one_stay(
        tmp_path,
        icu__d_items=[{"itemid": 7, "label": "Saline"}],
        icu__inputevents=[ended, {**ended, "endtime": None}],
    )
    index = world.index(tasks=["labevents"])
    assert not by_table(find_leaks(world, index, STRICT)).height

    def with_totals(
        rows: Shard, patient: Patient, sample: Sample, positions: np.ndarray
    ) -> list[Event]:
        return context.grouped_events(rows, positions, np.arange(len(positions)))

    found = find_leaks(world, index, View(STRICT.positions, with_totals))
    # In the window from hour 3 to hour 26; the first is over at hour 12, the second never.
    shown = [sample for sample in world.samples(tasks=["labevents"]) if 3 <= hour(sample) <= 26]
    (row,) = by_table(found).rows(named=True)
    assert row["table"] == "inputevents" and row["most"] == 9.0
    assert row["undated"] == row["leaking"] == len(shown)
    assert row["rows"] == len(shown) + sum(hour(sample) <= 12 for sample in shown)


def hour(sample: Sample) -> float:
    return (sample.prediction_time - START) / HOUR


def test_the_real_cells_are_judged(world: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    index = world.index(tasks=["inputevents"]).head(200)
    monkeypatch.setattr(context, "_LATE", [()] * len(context.ORDER))
    found = by_table(find_leaks(world, index, STRICT))
    assert set(found["table"]) & {"inputevents", "ingredientevents", "procedureevents"}


def test_paper_contexts_leak_and_are_judged_as_they_are_rendered(
    hospital: Path, tmp_path: Path
) -> None:
    world = finished(hospital, tmp_path, tasks=TASKS, protocol="paper")
    found, _ = examine(world, "paper", 5, 0)
    assert 0 < found.leaking <= found.samples
    assert found.texts.contexts > 5 and audit.problem(found, world.folder) is None
    assert {"labevents", "inputevents"} <= set(found.tables["table"])
    assert found.labels is not None and found.labels["both"].sum() > 0
    # by another road: the store as a table
    rows = pl.read_ipc(tmp_path / "store" / "0000" / "rows.arrow")
    totals = ["inputevents", "ingredientevents", "procedureevents", "admissions"]
    with_total = pl.col("table").is_in([context.ORDER.index(name) for name in totals])
    samples = world.samples(tasks=["labevents"])
    leaking = 0
    for sample in samples:
        shard, patient = world.store.find(sample.subject_id)
        own = rows[VIEWS["paper"].positions(shard, patient, sample)]
        early = own.filter(pl.col("available_time") < sample.prediction_time)
        running = early.filter(with_total & (pl.col("late_time") >= sample.prediction_time))
        leaking += early.height < own.height or running.height > 0
    (row,) = found.tasks.filter(pl.col("task") == "labevents").rows(named=True)
    assert row["leaking"] == leaking and row["samples"] == len(samples)


# --- splits, answers, labels ------------------------------------------------------------------


def test_patients_in_two_splits_are_found(world: Prepared) -> None:
    index = world.index()
    assert not index_checks.split_patients(world, index).height
    subject = index["subject_id"][0]
    first = pl.col("subject_id") == subject
    other = pl.when(pl.col("split") == "test").then(pl.lit("train")).otherwise(pl.lit("test"))
    twice = index.with_columns(pl.when(first).then(other).otherwise("split").alias("split"))
    assert index_checks.split_patients(world, twice)["subject_id"].to_list() == [subject]


def test_one_record_under_two_numbers_is_found(tmp_path: Path) -> None:
    later = 100 * DAY
    labs = [lab(n, str(START + n * HOUR)) for n in range(1, 25)]
    again = [lab(n, str(START + later + n * HOUR)) for n in range(1, 25)]
    shifted = stay(12, START + later, START + later + 5 * DAY)
    moved = {"subject_id": 2, "hadm_id": 12}
    person = {"gender": "F", "anchor_age": 60, "anchor_year": 2149}
    tables = hand_made(
        [*labs, *({**row, **moved} for row in again), {**lab(99, str(START)), "subject_id": 3}],
        hosp__patients=[{"subject_id": n, **person} for n in (1, 2, 3)],
        hosp__admissions=[stay(11, START, START + 5 * DAY), {**shifted, **moved}],
    )
    world = finished(write_tables(tmp_path / "hospital", tables), tmp_path / "prepare")
    splits = pl.DataFrame({"subject_id": [1, 2, 3], "split": ["train", "test", "test"]})
    splits.write_parquet(world.folder / "split.parquet")
    assert index_checks.same_records(world) == [[1, 2]]
    splits.with_columns(split=pl.lit("test")).write_parquet(world.folder / "split.parquet")
    assert index_checks.same_records(Prepared(world.folder)) == []


@pytest.mark.parametrize(
    ("line", "text", "there"),
    [
        ("Lactate", "| lactate | 2 |", True),
        ("Lactate", "| lactate dehydrogenase |", True),
        ("Lactate", "| lactated ringers |", False),
        ("pH", "- item_name: ph", True),
        ("pH", "phosphate", False),
        ("pCO2 (venous)", "| pco2 (venous) |", True),
    ],
)
def test_answers_stand_word_for_word(line: str, text: str, there: bool) -> None:
    assert index_checks.stands(line, text) == there


def test_answers_in_contexts_are_counted(tmp_path: Path) -> None:
    world = one_stay(tmp_path, hosp__d_labitems=[{"itemid": 50, "label": "Lactate"}])
    index = world.index()
    texts = index_checks.read_texts(world, index, STRICT, None, 0)
    counts = {task: tuple(row) for task, *row in texts.answers.rows()}
    asked = index.filter(pl.col("task") == "labevents").height
    # Before the first result the word stands nowhere.
    assert counts["labevents"] == (asked, 28, 28)
    assert "ICU_Stay_7day" not in counts and texts.unlike == []
    few = index_checks.read_texts(world, index, STRICT, 5, 0)
    assert dict(few.answers.select("task", "examined").rows())["labevents"] == 5


def test_a_context_with_other_rows_than_were_judged_is_named(world: Prepared) -> None:
    def fewer(rows: Shard, patient: Patient, sample: Sample) -> np.ndarray:
        return STRICT.positions(rows, patient, sample)[1:]

    texts = index_checks.read_texts(world, world.index(), View(fewer, STRICT.events), 2, 0)
    assert len(texts.unlike) == texts.contexts > 5
    found, _ = examine(world, "strict", 1, 0)
    assert "void" in str(audit.problem(replace(found, texts=texts), world.folder))


def labels(*rows: tuple[str, int, int | None, int | None, bool]) -> pl.DataFrame:
    columns = {"task": pl.String(), "subject_id": pl.Int64(), "hadm_id": pl.Int64()}
    types = columns | {"stay_id": pl.Int64(), "label": pl.Boolean()}
    return pl.DataFrame(list(rows), schema=types, orient="row")


def test_label_changes() -> None:
    here = labels(
        ("Inpatient_Mortality", 1, 11, None, False),
        ("Inpatient_Mortality", 2, 12, None, True),
        ("Inpatient_Mortality", 3, 13, None, False),
        ("ED_Hospitalization", 1, None, 31, True),
    )
    there = labels(
        ("Inpatient_Mortality", 1, 11, None, True),
        ("Inpatient_Mortality", 2, 12, None, False),
        ("Inpatient_Mortality", 4, 14, None, False),
        ("ED_Hospitalization", 1, 11, 31, True),  # the same visit, linked or not
        ("ICU_Readmission", 1, 11, 41, True),  # not asked here at all
    )
    assert index_checks.label_changes(here, there).rows() == [
        ("ED_Hospitalization", 1, 0, 0, 0, 0),
        ("Inpatient_Mortality", 2, 2, 1, 1, 1),
    ]


def test_an_index_has_the_labels_of_its_own_protocol(
    world: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(index_checks.LABELS, "paper", index_checks.strict_labels)
    found, _ = examine(world, "strict", 1, 0)
    metrics = audit.flat(found)
    for task in ("ED_Hospitalization", "ICU_Mortality_7day", "Readmission_30day"):
        assert metrics[f"label_changes/{task}"] == metrics[f"asked_only_here/{task}"] == 0
        assert metrics[f"asked_both/{task}"] == metrics[f"samples/{task}"] > 0


# --- the stage --------------------------------------------------------------------------------


def settings(**values: object) -> Config:
    return composed("audit.text_samples_per_task=2", "name=test", **values)


def test_a_leak_under_strict_fails_after_its_files_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    world = one_stay(tmp_path)
    everything = View(
        lambda rows, patient, _: np.arange(patient.first, patient.last), STRICT.events
    )
    monkeypatch.setitem(VIEWS, "strict", everything)
    monkeypatch.setattr(Prepared, "context", all_events)
    cfg = settings(output_root=str(tmp_path), inputs={"prepare": str(world.folder)})
    for _ in range(2):  # the second time in the folder of the first
        with (
            pytest.raises(LeakError, match="samples show what was known only after"),
            runs.opened(cfg, "audit") as run,
        ):
            assert run is not None
            audit.run(cfg, run)
        folder = tmp_path / "test" / "audit"
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 80
        printed = [line.split() for line in lines if line.startswith("labevents")]
        assert printed[:2] == [
            ["labevents", "29", "29", "100.0", "14.0", "28.0"],
            ["labevents"] * 2 + ["29"],
        ]
        metrics = json.loads((folder / "metrics.json").read_text())
        written = json.loads((folder / "audit.json").read_text())
        assert not not_on_the_page("audit", metrics)
        assert metrics["leaking_samples"] == written["leaking_samples"] > 50
        assert metrics["hours_ahead/labevents/max"] == 28
        labs = written["tasks"]["labevents"]
        assert labs["leaking"] == metrics["leaking_samples/labevents"] == labs["samples"] == 29
        assert labs["tables"] == {
            "labevents": {
                **{"leaking": 29, "rows": 29 * 30 // 2, "undated": 0},
                "hours_ahead_max": 28.0,
            }
        }
        assert len(labs["examples"]) == audit.EXAMPLES
        assert (folder / "audit.png").read_bytes().startswith(PNG)
        assert {path.name for path in (tmp_path / "test").iterdir()} == {".audit.lock", "audit"}


def all_events(world: Prepared, sample: Sample) -> list[Event]:
    rows, patient = world.store.find(sample.subject_id)
    return context.shown_events(rows, patient, sample, np.arange(patient.first, patient.last))


def test_an_empty_index_is_named(world: Prepared, tmp_path: Path) -> None:
    empty = finished(
        write_tables(tmp_path / "hospital", hand_made()), tmp_path / "prepare", tasks=["radiology"]
    )
    with pytest.raises(UserError, match="has no samples to audit"):
        audit.run(settings(), Run(tmp_path, "audit", {"prepare": empty.folder}))


def test_all_times_may_be_assumed(tmp_path: Path) -> None:
    labs = [{**lab(n, str(START + n * HOUR)), "storetime": None} for n in range(1, 24)]
    tables = write_tables(tmp_path / "hospital", hand_made(labs))
    world = finished(tables, tmp_path / "prepare")
    found, _ = examine(world, "strict", 5, 0)
    assert found.assumed == {"labevents": 1.0} and not found.leaking
    assert "depends on assumed times of knowledge for: labevents 100.0%" in notes(found)
    draw(found, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(PNG)


@pytest.mark.slow
def test_the_command_line(command_line: CommandLine, tmp_path: Path) -> None:
    shared = ["experiment=smoke", "data.subjects=6", f"output_root={tmp_path}"]
    shared += ["data.tasks=[labevents,emar,ICU_Mortality_7day]"]
    assert command_line(*shared, "stage=prepare").returncode == 0
    done = command_line(*shared, "stage=audit", "audit.text_samples_per_task=3")
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "smoke" / "audit"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert not not_on_the_page("audit", metrics)
    assert metrics["leaking_samples/labevents"] == metrics["leaking_samples/emar"] == 0
    assert metrics["answer_in_context/emar/examined"] == 3
    assert {"audit.json", "audit.png", "config.yaml"} <= {path.name for path in folder.iterdir()}
    assert "labevents" in done.stdout and "contexts" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    # the same with contexts that see an hour too far: a bug, a traceback, exit code 1
    code = (
        "import runpy, sys; from ehrr1.tasks import context; own = context._limit;"
        "context._limit = lambda cut: own(cut) + 3_600_000_000;"
        "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    leaking = subprocess.run(
        [sys.executable, "-c", code, str(ROOT / "run.py"), *shared, "stage=audit"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert leaking.returncode == 1, leaking.stderr[-3000:]
    assert leaking.stderr.splitlines()[-1].startswith("ehrr1.errors.LeakError: ")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["leaking_samples/labevents"] > 0
    assert 0 < metrics["hours_ahead/labevents/max"] <= 1


def test_the_audit_does_not_wait_for_torch() -> None:
    code = "import sys, ehrr1.stages.audit; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
