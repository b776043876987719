"""Cards: README.md in every hf/ and beside every export."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from ehrr1 import damage
from ehrr1.config.schema import Config
from ehrr1.files import write_json
from ehrr1.runs import Run
from ehrr1.stages import execute
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.data_card import export_card
from ehrr1.tasks.samples import Prepared
from ehrr1.training.consolidation import consolidate
from ehrr1.training.model_card import model_card
from tests.settings import composed
from tests.test_card import section
from tests.test_training import lines_of


def front_of(text: str) -> dict[str, Any]:
    """The front matter of a card."""
    found: dict[str, Any] = yaml.safe_load(re.findall(r"\A---\n(.*?)\n---\n", text, re.DOTALL)[0])
    return found


def card(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def closed(smoke: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The records of `smoke`, as if they were real."""
    folder = tmp_path_factory.mktemp("closed") / "prepare"
    shutil.copytree(smoke / "prepare", folder, symlinks=True)
    write_json(folder / "open.json", {"open": False, "why": "data.open=false"})
    return folder


def card_of(cfg: Config, prepare: Path, folder: Path) -> str:
    """The card that a run of `adapt` on these records would write."""
    write_json(folder / "inputs.json", {"prepare": "0123456789abcdef"})
    return model_card(cfg, Run(folder, "adapt", {"prepare": prepare}), 8_000_000_000)


@pytest.mark.parametrize("stage", ["adapt", "reason", "rl"])
def test_each_training_stage_leaves_a_card(smoke: Path, stage: str) -> None:
    text = card(smoke / stage / "hf")
    front = front_of(text)
    assert front["library_name"] == "transformers" and front["language"] == ["en"]
    assert "synthetic-data" in front["tags"] and f"stage-{stage}" in front["tags"]
    assert front["license_name"] == "to-be-decided" and "base_model" not in front
    assert f"# smoke, {stage}\n" in text and "Research only, not for clinical use" in text
    assert "- Protocol: `strict`, a window of 24 hours" in text and "40 patients, open" in text
    for name, mark in json.loads((smoke / stage / "inputs.json").read_text()).items():
        assert f"`{name}` ({mark})" in text
    steps = lines_of(smoke / stage)[-1]["step"]
    assert f"those after {steps} steps." in text
    assert ("| accuracy |" in text) == (stage == "rl")
    assert ("Loss on validation patients: " in text) == (stage != "rl")
    assert str(smoke.parent) not in text and "output_root=PATH" in text
    # without the results it stands beside the other files of hf/ from the beginning
    assert text.startswith(card(smoke / stage / "base"))


def test_a_card_may_be_completed(smoke: Path, tmp_path: Path) -> None:
    run = tmp_path / "adapt"
    shutil.copytree(smoke / "adapt", run, symlinks=True)
    assert not [name for name in damage.read_manifest(run)["files"] if "README" in name]
    (run / "hf" / "README.md").write_text("AUROC 0.81 [0.79, 0.83], 500 patients\n")
    damage.check(run, full=True)
    (run / "hf" / "README.md").unlink()
    damage.check(run, full=True)


def test_consolidate_writes_it_anew(smoke: Path, tmp_path: Path) -> None:
    run = tmp_path / "adapt"
    shutil.copytree(smoke / "adapt", run, symlinks=True)
    (run / "hf" / "README.md").write_text("mine\n")
    consolidate(run)
    assert card(run / "hf") == card(smoke / "adapt" / "hf")
    damage.check(run, full=True)


def test_the_card_of_closed_records(closed: Path, tmp_path: Path) -> None:
    cfg = composed("experiment=strict_8b", "stage=adapt", "data.root=/data/mimic")
    text = card_of(cfg, closed, tmp_path)
    front = front_of(text)
    assert front["license_name"] == "as-the-records" and front["base_model"] == "Qwen/Qwen3-8B"
    assert "synthetic-data" not in front["tags"]
    assert "Do not upload it to a public place" in text
    assert "shared on PhysioNet under the agreement of the source data" in text
    ids = {str(subject) for subject in Prepared(closed).splits["subject_id"]}
    assert not ids & set(re.findall(r"\d+", text))
    assert not set(Prepared(closed).names) & set(text.splitlines())


@pytest.mark.parametrize(
    ("model", "base", "licence"),
    [
        ("8b", "Qwen/Qwen3-8B", "apache-2.0"),
        ("72b", "Qwen/Qwen2.5-72B-Instruct", "other"),
        ("smollm2_135m", "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"),
        ("someone/else", "someone/else", "other"),
        ("tiny", None, "other"),
    ],
)
def test_licences_and_names_of_base_models(
    smoke: Path, tmp_path: Path, model: str, base: str | None, licence: str
) -> None:
    text = card_of(composed("experiment=demo", f"model={model}"), smoke / "prepare", tmp_path)
    front = front_of(text)
    assert (front.get("base_model"), front["license"]) == (base, licence)
    known = model not in ("someone/else", "tiny")
    assert (front.get("license_name") == "to-be-decided") != known


def test_the_command_has_no_path(
    smoke: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [
        "--config-dir",
        "/home/me/own",
        "experiment=demo",
        "data.root=/home/me/mimic",
        "model=Qwen/Qwen3-8B",
        "adapt.lr=1e-4",
    ]
    monkeypatch.setattr("ehrr1.command.TYPED", words)
    text = card_of(composed("experiment=demo", "stage=adapt"), smoke / "prepare", tmp_path)
    shown = "--config-dir PATH stage=adapt experiment=demo data.root=PATH model=Qwen/Qwen3-8B"
    assert f"{shown} adapt.lr=1e-4\n" in text and "/home" not in text


def test_each_export_has_a_card(smoke: Path, tmp_path: Path) -> None:
    words = [f"output_root={tmp_path}", f"inputs.prepare={smoke / 'prepare'}"]
    execute(composed("experiment=smoke", "stage=export", "export.limit=3", *words))
    text = card(tmp_path / "smoke" / "export" / "parquet-test-3")
    assert front_of(text)["license_name"] == "to-be-decided"
    assert "# Data card" in text and "export.layout=parquet" in text
    assert "The records are open (invented patients)" in text
    for heading in ("Settings", "Patients", "Tables", "Samples", "Answers", "Left out"):
        assert f"\n## {heading}" in text
    assert "## Lengths of prompts" not in text  # those of stage=card


def test_the_data_card_of_closed_records_names_no_item(closed: Path) -> None:
    text = export_card(Prepared(closed), "meds", 0)
    assert front_of(text)["license_name"] == "as-the-records"
    assert "share them only with those who" in text
    answers = section(text, "Answers")
    assert {cells[-1] for task, cells in answers.items() if task in TASKS} == {"(closed)"}
