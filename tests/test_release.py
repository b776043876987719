"""The release's layout: out and back again, and a folder as its authors write it."""

import json
import tarfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ehrr1.errors import UserError
from ehrr1.files import write_json
from ehrr1.records.markdown import record_markdown
from ehrr1.records.release.layout import COLUMNS
from ehrr1.records.release.source import new_positions
from ehrr1.runs import Run
from ehrr1.stages import export
from ehrr1.stages.audit import examine, flat
from ehrr1.tasks.samples import Prepared, Sample
from tests.settings import composed, record
from tests.test_records import Metrics, configured, hospital, prepared

__all__ = ["hospital"]  # a fixture


@pytest.fixture(scope="module")
def world(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("paper")
    world, metrics = prepared(hospital, folder, protocol="paper")
    record(configured(hospital, protocol="paper"), folder)
    write_json(folder / "metrics.json", metrics)
    return world


@pytest.fixture(scope="module")
def exported(world: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export")
    metrics = export.write(
        composed("export.layout=release"), Run(out, "export", {"prepare": world.folder})
    )
    assert metrics["patients"] == 40 == len(list(out.glob("release/patients_ehr/*.parquet")))
    assert metrics["rows/ehr_ins"] == world.index("train").height
    return out / "release"


def read_back(root: Path, folder: Path, **settings: Any) -> tuple[Prepared, Metrics]:
    return prepared(root, folder, name="release", protocol="paper", **settings)


def by_id(world: Prepared) -> dict[str, Sample]:
    return {sample.sample_id: sample for sample in world.samples()}


def same_samples(world: Prepared, back: Prepared) -> None:
    """The same questions, answers, and contexts as text."""
    was, now = by_id(world), by_id(back)
    assert was.keys() == now.keys()
    for key, sample in was.items():
        other = now[key]
        for name in ("subject_id", "hadm_id", "stay_id", "task", "split", "prediction_time"):
            assert getattr(other, name) == getattr(sample, name), (key, name)
        for name in ("period_begin", "period_end", "target", "n_context_rows", "context_id"):
            assert getattr(other, name) == getattr(sample, name), (key, name)
    contexts = {sample.context_id: sample for sample in was.values()}
    for sample in list(contexts.values())[:: max(1, len(contexts) // 300)]:
        text = record_markdown(world.context(sample))
        assert record_markdown(back.context(now[sample.sample_id])) == text


def test_the_files_are_the_releases(exported: Path, world: Prepared) -> None:
    path = next((exported / "patients_ehr").iterdir())
    events = pl.read_parquet(path)
    assert tuple(events.columns) == COLUMNS and events["file_name"][0] == "patients"
    for cell in events["items"]:
        rows = json.loads(cell)
        assert rows and all(isinstance(value, str) for row in rows for value in row.values())
    index = pl.read_csv(exported / "ehr_ins" / "ehr_ins.csv", infer_schema_length=0)
    assert index.columns[:9] == [
        *("subject_id", "hadm_id", "task", "event", "period_begin", "period_end"),
        *("admissions_id", "last_discharge_id", "target"),
    ]
    bench = exported / "ehr_bench"
    decision = pl.read_csv(bench / "ehr_bench_decision_making.csv", infer_schema_length=0)
    risk = pl.read_csv(bench / "ehr_bench_risk_prediction.csv", infer_schema_length=0)
    rows = (bench / "ehr_bench.jsonl").read_text().splitlines()
    assert len(rows) == decision.height + risk.height == world.index("test").height > 0
    for name in ("item_set", "similar_item"):
        assert (exported / "cache" / name / "labevents.csv").exists()
    names = {path.stem for path in (exported / "index_mapping").rglob("*.csv")}
    assert {"d_labitems", "d_ccs_procedures", "d_atc_prescriptions"} <= names
    codes = pl.read_csv(exported / "index_mapping" / "hosp" / "d_atc_prescriptions.csv")
    assert codes.columns == ["ndc_code", "atc_name"]


def test_it_comes_back_as_it_was(exported: Path, world: Prepared, tmp_path: Path) -> None:
    back, metrics = read_back(exported, tmp_path / "back")
    same_samples(world, back)
    assert back.splits.sort("subject_id").equals(world.splits.sort("subject_id"))
    assert metrics["rows_kept/labevents"] == metrics["rows/labevents"] > 0
    assert not [name for name in metrics if name.startswith(("excluded/", "availability_assumed"))]


def test_the_audit_finds_the_same_leaks(exported: Path, world: Prepared, tmp_path: Path) -> None:
    back, metrics = read_back(exported, tmp_path / "back")
    write_json(back.folder / "metrics.json", metrics)
    was, now = (flat(examine(one, "paper", 2, 0)[0]) for one in (world, back))
    leaks = {name: count for name, count in was.items() if name.startswith("leaking_samples")}
    assert leaks == {name: now[name] for name in leaks} and sum(leaks.values()) > 0


def test_an_archive_is_read_as_its_folder_is(
    exported: Path, world: Prepared, tmp_path: Path
) -> None:
    archive = tmp_path / "release.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        file.add(exported, "ehr_r1/release")
    back, _ = read_back(archive, tmp_path / "back", patients_per_shard=9)
    same_samples(world, back)
    assert not (tmp_path / "back" / ".release").exists()
    archive.write_bytes(b"no archive")
    with pytest.raises(UserError, match="cannot be unpacked"):
        read_back(archive, tmp_path / "other")


# --- as the authors write it -------------------------------------------------------------------

LAB = {"itemid": "50912", "valuenum": "1.0", "valueuom": "mg/dL", "flag": "nan"}
EVENTS: list[tuple[str, str | None, str | None, list[dict[str, str]] | str]] = [
    ("patients", None, None, [{"anchor_age": "61", "gender": "F"}]),
    ("admissions", "2150-01-01 08:00:00", "22", [{"admission_type": "URGENT"}]),
    ("labevents", "2150-01-01 09:00:00", "22", [LAB, {"item_name": "Sodium", "valuenum": "140"}]),
    ("unheard_of", "2150-01-01 09:30:00", "22", [{"a": "b"}]),
    ("labevents", "2150-01-01 10:00:00", "22", [{"item_name": "Lactate", "valuenum": "2.5"}]),
    ("emar", "2150-01-01 09:30:00", "22", [{"medication": "Heparin", "event_txt": "nan"}]),
    ("poe", "2150-01-01 11:00:00", "22", "no json"),
    ("transfers", "2150-01-01 12:00:00", "22", [{"eventtype": "transfer", "careunit": "MICU"}]),
    ("diagnoses_icd", None, "22", [{"icd_code": "I10", "icd_version": "10"}]),
]


@pytest.fixture
def authors(tmp_path: Path) -> Path:
    """A folder with the layout of the release, by hand; hadm_id as a float, as pandas leaves it."""
    root = tmp_path / "authors"
    for name in ("patients_ehr", "ehr_ins", "ehr_bench", "index_mapping", "cache/similar_item"):
        (root / name).mkdir(parents=True)
    pl.DataFrame(
        [
            (
                file,
                start,
                start,
                None if hadm is None else float(hadm),
                rows if isinstance(rows, str) else json.dumps(rows),
            )
            for file, start, hadm, rows in EVENTS
        ],
        schema=dict(zip(COLUMNS, [pl.String] * 3 + [pl.Float64, pl.String], strict=True)),
        orient="row",
    ).write_parquet(root / "patients_ehr" / "7.parquet")
    (root / "index_mapping" / "d_labitems.csv").write_text("itemid,label\n50912,Creatinine\n")
    (root / "index_mapping" / "d_icd_diagnoses.csv").write_text(
        "icd_code,icd_version,long_title\nI10,10,Essential hypertension\n"
    )
    (root / "cache" / "similar_item" / "labevents.csv").write_text("item,similar_items\n")
    write_index(
        root,
        "emar,emar,1,5,1,,['Heparin']",
        "transfers,transfers,1,7,1,,MICU",
        "diagnoses_icd,diagnoses_icd,1,8,1,,",
        "transfers,transfers,4,7,1,,MICU",
        "labevents,labevents,9,5,1,,Lactate",
        "nonsense,emar,1,5,1,,Heparin",
        "ICU_Mortality_7day,icustays,1,5,1,,1",
    )
    return root


def write_index(root: Path, *rows: str) -> None:
    name = "ehr_ins/ehr_ins.csv"
    head = "subject_id,hadm_id,task,event,period_begin,period_end,admissions_id,last_discharge_id"
    lines = [f"{head},target", *(f"7,22.0,{row}" for row in rows)]
    (root / name).write_text("\n".join(lines) + "\n")


def test_a_folder_of_the_authors(authors: Path, tmp_path: Path) -> None:
    world, metrics = read_back(authors, tmp_path / "back")
    samples = {sample.task: sample for sample in world.samples()}
    assert samples.keys() == {"emar", "transfers", "diagnoses_icd", "ICU_Mortality_7day"}
    assert samples["emar"].target == ("Heparin",) and samples["transfers"].target == ("MICU",)
    assert samples["diagnoses_icd"].target == ("Essential hypertension",)
    assert samples["ICU_Mortality_7day"].target == ("yes",)
    assert record_markdown(world.context(samples["emar"])) == (
        "## Patient Demographics [None]\n- Anchor_Age: 61\n- Gender: F\n\n"
        "## Admissions [2150-01-01 08:00:00]\n- Admission_Type: URGENT\n- Admission_Location:\n"
        "- Admission_Info:\n\n"
        "## Labotary Test Events [2150-01-01 09:00:00]\n"
        "| Item_Name | Valuenum | Valueuom | Ref_Range_Lower | Ref_Range_Upper | Flag | Comments |"
        "\n| ------ | ------ | ------ | ------ | ------ | ------ | ------ |\n"
        "| Creatinine | 1.0 | mg/dL |  |  |  |  |\n| Sodium | 140 |  |  |  |  |  |\n"
        "| Lactate | 2.5 |  |  |  |  |  |"
    )
    tables = [event.table for event in world.context(samples["transfers"])]
    assert tables == ["patients", "admissions", "labevents", "emar"]
    reported = json.loads((tmp_path / "back" / "reported.json").read_text())
    assert reported["meds"] == {"unknown_table": 1} and reported["poe"] == {"bad_items": 1}
    assert metrics["excluded/transfers/split_event"] == 1
    assert metrics["excluded/labevents/no_period"] == 1
    assert metrics["excluded/unknown_task/no_such_task"] == 1
    assert metrics["availability_assumed/labevents"] == 3
    assert (tmp_path / "back" / "similar_item" / "labevents.csv").exists()


def test_positions_of_what_is_kept() -> None:
    everything = {1: "a", 2: "b", 3: "a"}
    assert new_positions(everything, 4).tolist() == [0, 1, 2, 3, 4]
    assert new_positions({1: "a", 3: "b"}, 4).tolist() == [0, 1, 2, 2, 3]
    assert new_positions({1: "a", 3: "a", 4: "c"}, 5).tolist() == [0, 1, -1, -1, 2, 3]


def test_wrong_folders_are_named(authors: Path, tmp_path: Path, world: Prepared) -> None:
    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match):
            read_back(authors, tmp_path / "back")

    path = authors / "ehr_ins" / "ehr_ins.csv"
    path.write_text(path.read_text().replace("period_end", "end"))
    refused("lacks the column period_end")
    path.unlink()
    refused("ehr_ins.csv")
    (authors / "patients_ehr" / "7.parquet").unlink()
    refused("patients_ehr")


def test_strict_contexts_have_no_positions(hospital: Path, tmp_path: Path) -> None:
    strict, _ = prepared(hospital, tmp_path / "strict", tasks=["transfers"])
    cfg = composed("export.layout=release")
    with pytest.raises(UserError, match=r"data\.protocol=paper"):
        export.write(cfg, Run(tmp_path, "export", {"prepare": strict.folder}))
