"""Whose records are open: it follows from the patients, is decided once, and later commands cannot
change it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ehrr1 import runs
from ehrr1.errors import UserError
from ehrr1.evaluation import chat, report
from ehrr1.evaluation.aggregate import summarise
from ehrr1.evaluation.opening import reader
from ehrr1.evaluation.targets import Target
from ehrr1.files import write_json
from ehrr1.runs import Run
from ehrr1.stages import export, prepare_inputs
from ehrr1.synthetic.hospital import write_hospital
from ehrr1.tasks.samples import Prepared
from tests.conftest import CommandLine
from tests.messages_server import MessagesServer
from tests.settings import composed, record
from tests.test_chat import settings as chat_settings
from tests.test_records import configured, copied, prepared, read_text
from tests.test_report_page import TASKS, predictions

Decided = dict[str, Any]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hospital") / "hospital"
    write_hospital(root, 6, 1, progress=False)
    return root


def decided(root: Path, folder: Path, **settings: Any) -> Decided:
    """Return what `stage=prepare` decides of a folder before it reads the records."""
    cfg = configured(root, **settings)
    return prepare_inputs.openness_of(cfg, prepare_inputs.opened(cfg, folder))


def one_more(patients: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([patients, patients.head(1).with_columns(subject_id=pl.lit("19999999"))])


def one_less(patients: pl.DataFrame) -> pl.DataFrame:
    return patients.head(patients.height - 1)


def with_patients(
    hospital: Path, target: Path, change: Callable[[pl.DataFrame], pl.DataFrame]
) -> Path:
    """A copy of the hospital with other patients, its mark as it was."""
    copied(hospital, target, lambda name, frame: change(frame) if "patients" in name else frame)
    (target / "ehrr1-synthetic.json").write_bytes((hospital / "ehrr1-synthetic.json").read_bytes())
    return target


@pytest.mark.slow
def test_by_the_command_line(tmp_path: Path, command_line: CommandLine) -> None:
    """A hospital that is invented, the same folder read as MIMIC-IV, and with a patient more."""
    small = ["stage=prepare", "data.tasks=[labevents]", f"output_root={tmp_path}"]
    done = command_line(*small, "data.subjects=6")
    assert done.returncode == 0 and "open records (invented patients)" in done.stderr, done.stderr
    made = tmp_path / "demo" / "prepare"
    assert runs.data_is_open(made)
    again = [*small, "data=mimic", f"data.root={made / 'hospital'}"]
    done = command_line(*again)
    assert done.returncode == 0 and "open records (invented patients)" in done.stderr, done.stderr
    assert runs.data_is_open(tmp_path / "released" / "mimic" / "prepare")
    patients = made / "hospital" / "hosp" / "patients.csv.gz"
    one_less(read_text(patients)).write_csv(patients, compression="gzip")
    done = command_line(*again, "variant=less")
    assert done.returncode == 0 and "closed records (these are neither" in done.stderr
    assert "data.open=true" in done.stderr
    closed = tmp_path / "released" / "less" / "prepare"
    assert not runs.data_is_open(closed)
    # what was decided stays, and is not decided anew by a later word
    done = command_line(*again, "variant=less", "data.open=true")
    assert done.returncode == 2 and "data.open: None there, True now" in done.stderr


def test_one_patient_more_or_less_is_another_cohort(hospital: Path, tmp_path: Path) -> None:
    assert decided(hospital, tmp_path) == {"open": True, "why": "invented patients"}
    for name, change in (("more", one_more), ("less", one_less)):
        found = decided(with_patients(hospital, tmp_path / name, change), tmp_path)
        assert found["open"] is False, name


def test_a_mark_of_others_or_none_opens_nothing(hospital: Path, tmp_path: Path) -> None:
    bare = copied(hospital, tmp_path / "bare", lambda name, frame: frame)
    assert decided(bare, tmp_path)["open"] is False
    write_json(bare / "ehrr1-synthetic.json", {"invented": True, "patients": "0" * 16})
    assert decided(bare, tmp_path)["open"] is False
    write_json(bare / "ehrr1-synthetic.json", {"invented": True})
    assert decided(bare, tmp_path)["open"] is False


def test_the_open_demo_and_a_part_of_it(mimic_demo: Path, tmp_path: Path) -> None:
    found = decided(mimic_demo, tmp_path)
    assert found == {"open": True, "why": "the open MIMIC-IV demo's patients"}
    ids = read_text(mimic_demo / "hosp" / "patients.csv.gz")["subject_id"]
    (tmp_path / "few.csv").write_text("\n".join(["subject_id", *ids[:99]]))
    part = decided(mimic_demo, tmp_path, subjects_file=str(tmp_path / "few.csv"))
    assert part["open"] is False


@pytest.mark.parametrize("said", [True, False])
def test_what_the_user_says_is_recorded(hospital: Path, tmp_path: Path, said: bool) -> None:
    bare = copied(hospital, tmp_path / "bare", lambda name, frame: frame)
    prepared(bare, tmp_path / "prepare", tasks=["labevents"], open=said)
    found = json.loads((tmp_path / "prepare" / "open.json").read_text())
    assert found == {"open": said, "why": f"data.open={str(said).lower()}"}
    assert runs.data_is_open(tmp_path / "prepare") is said


@pytest.mark.parametrize(("layout", "protocol"), [("meds", "strict"), ("release", "paper")])
def test_exports_of_invented_patients_are_open_when_read_again(
    hospital: Path, tmp_path: Path, layout: str, protocol: str
) -> None:
    tasks = ["labevents", "diagnoses_ccs", "diagnoses_icd", "ICU_Mortality_7day"]
    settings: dict[str, Any] = {"protocol": protocol, "tasks": tasks}
    world, metrics = prepared(hospital, tmp_path / "prepare", **settings)
    record(configured(hospital, **settings), world.folder)
    write_json(world.folder / "metrics.json", metrics)
    out = tmp_path / "export"
    out.mkdir()
    export.write(composed(f"export.layout={layout}"), Run(out, "export", {"prepare": world.folder}))
    back = decided(out / layout, tmp_path, name=layout, protocol=protocol)
    assert back == {"open": True, "why": "invented patients"}
    # the same files of closed records have no mark
    write_json(world.folder / "open.json", {"open": True, "why": "data.open=true"})
    again = tmp_path / "again"
    again.mkdir()
    export.write(
        composed(f"export.layout={layout}"), Run(again, "export", {"prepare": world.folder})
    )
    assert decided(again / layout, tmp_path, name=layout, protocol=protocol)["open"] is False


@pytest.fixture
def closed(tmp_path: Path) -> Path:
    """A finished `prepare` of closed records, as far as its readers look."""
    folder = tmp_path / "demo" / "prepare"
    folder.mkdir(parents=True)
    write_json(folder / "open.json", {"open": False, "why": "neither"})
    write_json(folder / "metrics.json", {})
    record(composed(), folder)
    return folder


@pytest.mark.parametrize("stage", ["graph", "adapt", "eval", "export"])
def test_closed_stays_closed_whatever_is_said_later(closed: Path, stage: str) -> None:
    for said in ("true", "false", "null"):
        cfg = composed(
            "engine=server", f"stage={stage}", f"output_root={closed.parents[1]}",
            f"data.open={said}",
        )  # fmt: skip
        found = runs.find_inputs(cfg, stage)["prepare"]
        assert found == closed and not runs.data_is_open(found)


def test_what_an_earlier_version_prepared_is_closed(closed: Path) -> None:
    (closed / "open.json").unlink()
    (closed / "config.yaml").write_text("data: {open: true}")
    assert not runs.data_is_open(closed)


def test_reports_of_closed_records_show_no_case(
    closed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def cases_of(*given: object) -> list[report.Case]:
        asked.append("cases")
        return []

    monkeypatch.setattr(report, "cases_of", cases_of)
    table = predictions({"rl": 1.0}, patients=12)
    metrics = summarise(table, TASKS, "test", 2, 0)
    cfg = composed("stage=eval", "data.open=true")
    report.publish(cfg, tmp_path, table, metrics, TASKS, Prepared(closed))
    assert not asked and (tmp_path / "report.html").exists()
    write_json(closed / "open.json", {"open": True, "why": "data.open=true"})
    report.publish(cfg, tmp_path, table, metrics, TASKS, Prepared(closed))
    assert asked == ["cases"]


def test_closed_records_are_sent_to_nobody(closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "test")
    with MessagesServer() as server:
        with pytest.raises(UserError, match="third party"):
            chat.check(chat_settings(server), runs.data_is_open(closed))
        assert not server.headers


def test_closed_records_reach_a_server_elsewhere_only_if_the_user_says_so(closed: Path) -> None:
    away = ["engine=server", "engine.url=http://10.0.0.1:8000/v1", "engine.timeout_seconds=0.1"]
    target = Target("away:direct", "away", None, None, None)
    with pytest.raises(UserError, match=r"^engine=server: the records are closed, and"):
        reader(composed(*away), target, {"prepare": closed}, {})
    allowed = [*away[:1], "engine.url=http://127.0.0.1:9/v1", "engine.compliant_endpoint=true"]
    for words in (allowed, allowed[:2]):  # this machine needs no permission
        with pytest.raises(UserError, match=r"engine\.url=http://127\.0\.0\.1:9/v1: no answer"):
            reader(composed(*words), target, {"prepare": closed}, {})
