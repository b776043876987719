"""Cards: README.md and DATA_CARD.md in every hf/, those with scores, and those of exports."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from ehrr1 import damage
from ehrr1.config.schema import Config
from ehrr1.evaluation import cards
from ehrr1.evaluation.predictions import read_predictions
from ehrr1.files import read_json, read_yaml, write_json
from ehrr1.runs import Run
from ehrr1.stages import execute
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.data_card import export_card, model_data_card
from ehrr1.tasks.samples import Prepared
from ehrr1.training.consolidation import consolidate
from ehrr1.training.model_card import BEGIN, END, model_card, with_scores
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


@pytest.fixture
def evaluated(smoke: Path, tmp_path: Path) -> Path:
    """A copy of the evaluation of `smoke` and of the models that it asked."""
    for stage in ("adapt", "reason", "rl", "eval"):
        shutil.copytree(smoke / stage, tmp_path / "runs" / stage, symlinks=True)
    return tmp_path / "runs" / "eval"


def written(folder: Path, is_open: bool = True) -> dict[str, str]:
    """The cards that the evaluation in `folder` writes of the models beside it."""
    inputs = {stage: folder.parent / stage for stage in ("adapt", "reason", "rl")}
    scored = read_predictions(folder / "predictions.parquet").filter(pl.col("split") == "test")
    tasks = scored["task"].unique().sort().to_list()
    metrics = read_json(folder / "metrics.json")
    cards.write(folder, inputs, scored, metrics, tasks, {"data": "those"}, is_open)
    return {path.stem: path.read_text() for path in (folder / "cards").iterdir()}


def with_interval(metrics: dict[str, float], key: str) -> str:
    return f"{metrics[key]:.3f} ({metrics[f'{key}/low']:.3f}, {metrics[f'{key}/high']:.3f})"


def rows_of(text: str) -> dict[str, list[str]]:
    """The rows of all tables of the scores, by their first cell."""
    scores = text.split(BEGIN)[1].split(END)[0]
    rows = [line.strip("| ").split(" | ") for line in scores.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.parametrize("stage", ["adapt", "reason", "rl"])
def test_an_evaluation_leaves_cards_with_scores(smoke: Path, stage: str) -> None:
    text = (smoke / "eval" / "cards" / f"{stage}.md").read_text(encoding="utf-8")
    assert text.startswith(card(smoke / stage / "hf").split(BEGIN)[0])
    assert "Not evaluated" not in text and "Not evaluated" in card(smoke / stage / "hf")
    metrics, rows = read_json(smoke / "eval" / "metrics.json"), rows_of(text)
    own = read_predictions(smoke / "eval" / "predictions.parquet").filter(
        (pl.col("split") == "test") & (pl.col("model") == stage) & (pl.col("draw") == 0)
    )
    assert f"on {own['subject_id'].n_unique()} patients of the test split" in text
    assert "- Data: synthetic, invented patients, open\n- Protocol: strict\n" in text
    assert rows[stage][0] == with_interval(metrics, f"{stage}/risk/auroc/macro")
    assert rows[stage][1] == with_interval(metrics, f"{stage}/decision/f1/macro")
    assert rows["frequency"][1] == with_interval(metrics, "baseline/frequency/decision/f1/macro")
    told = [task for task in TASKS if f"{stage}/{task}/f1" in metrics]
    assert told
    for task in told:
        samples = own.filter(pl.col("task") == task)
        counts = [str(samples["subject_id"].n_unique()), str(samples.height)]
        assert rows[task] == [*counts, with_interval(metrics, f"{stage}/{task}/f1")]
    risk = [task for task in TASKS if f"{stage}/{task}/auroc" in metrics]
    assert risk
    for task in risk:
        assert rows[task][3] == with_interval(metrics, f"{stage}/{task}/auroc")
        yes = own.filter(pl.col("task") == task)["target"] == "yes"
        assert rows[task][2] == f"{yes.mean():.1%}"
    assert str(smoke.parent) not in text


def test_what_a_user_has_written_is_kept(evaluated: Path) -> None:
    hf = evaluated.parent / "rl" / "hf" / "README.md"
    mine = hf.read_text().replace("license_name: to-be-decided", "license_name: mine")
    hf.write_text(f"{mine}\n## Authors\n\nWe.\n")
    before = hf.read_bytes()
    text = written(evaluated)["rl"]
    assert hf.read_bytes() == before
    assert "license_name: mine" in text and text.endswith("\n## Authors\n\nWe.\n")
    assert rows_of(text)["rl"] and "Not evaluated" not in text
    hf.write_text(text)
    assert written(evaluated)["rl"] == text  # the scores are replaced, not repeated


def test_a_card_without_the_section_gets_one() -> None:
    text = with_scores("mine\n", "0.5")
    assert text == f"mine\n\n{BEGIN}\n## Scores\n\n0.5\n\n{END}\n"
    assert with_scores(text, r"\1") == text.replace("0.5", r"\1")


def test_scores_are_not_those_of_other_weights(evaluated: Path) -> None:
    runs = evaluated.parent
    before = written(evaluated)["rl"]
    metrics = read_json(runs / "rl" / "metrics.json")
    write_json(runs / "rl" / "metrics.json", metrics | {"hf/step": 1})
    (runs / "rl" / "hf" / "README.md").write_text("other weights\n")
    shutil.rmtree(runs / "reason")
    assert written(evaluated)["rl"] == before  # the card that was written before
    shutil.rmtree(evaluated / "cards")
    assert list(written(evaluated)) == ["adapt"]


def test_cards_appear_together(evaluated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = written(evaluated)
    plain = Path.write_text

    def full(self: Path, *words: Any, **named: Any) -> int:
        if self.name == "reason.md":
            raise OSError(28, "No space left on device")
        return plain(self, *words, **named)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        written(evaluated, is_open=False)
    assert {p.stem: p.read_text() for p in (evaluated / "cards").iterdir()} == before
    assert not list(evaluated.glob(".cards*"))


def test_a_card_that_is_no_text_is_named(evaluated: Path) -> None:
    (evaluated.parent / "rl" / "hf" / "README.md").write_bytes(b"\xff")
    with pytest.raises(damage.DamagedError, match=r"hf/README\.md .*save it in UTF-8"):
        written(evaluated)


def test_scores_of_closed_records_tell_of_no_few_patients(evaluated: Path) -> None:
    text = written(evaluated, is_open=False)["rl"]
    scored = read_predictions(evaluated / "predictions.parquet").filter(pl.col("split") == "test")
    assert scored["subject_id"].n_unique() < 10
    rows = rows_of(text)
    assert "on - patients of the test split" in text
    asked = [task for task in TASKS if task in rows]
    assert asked and {cell for task in asked for cell in rows[task]} == {"-"}
    assert re.match(r"\d\.\d{3} \(", rows["rl"][0])  # a mean over tasks is an aggregate


def test_a_share_is_hidden_where_few_have_an_answer() -> None:
    answers = pl.DataFrame({"subject_id": range(30), "target": ["yes"] * 9 + ["no"] * 21})
    assert cards.share_of_yes(answers, 10) == "-"
    assert cards.share_of_yes(answers, 1) == "30.0%"
    assert cards.share_of_yes(answers.slice(9), 10) == "0.0%"


def test_scoring_again_writes_the_cards_again(smoke: Path, tmp_path: Path) -> None:
    folder = tmp_path / "eval"
    shutil.copytree(smoke / "eval", folder)
    shutil.rmtree(folder / "cards")
    execute(composed("experiment=smoke", "stage=eval", f"rescore={folder}"))
    for stage in ("adapt", "reason", "rl"):
        again, first = ((f / "cards" / f"{stage}.md").read_text() for f in (folder, smoke / "eval"))
        assert rows_of(again) == rows_of(first)


@pytest.mark.parametrize("stage", ["adapt", "reason", "rl"])
def test_each_model_has_a_data_card(smoke: Path, stage: str) -> None:
    text = (smoke / stage / "hf" / "DATA_CARD.md").read_text(encoding="utf-8")
    assert f"`stage={stage}`" in text and "[DATA_CARD.md](DATA_CARD.md)" in card(
        smoke / stage / "hf"
    )
    assert "- Records: `data=synthetic`, open (invented patients)" in text
    assert "- Protocol: `strict`, a window of 24 hours" in text and "Do not use the records" in text
    prepared = Prepared(smoke / "prepare")
    for split in ("train", "validation", "test"):
        patients = prepared.splits.filter(pl.col("split") == split).height
        assert section(text, "Patients")[split][0] == str(patients)
    index = prepared.index("train")
    samples = section(text, "Samples")
    for task in index["task"].unique():
        own = index.filter(pl.col("task") == task)
        assert samples[task][0] == f"{own.height:,}"
        if TASKS[task].kind == "risk":
            assert samples[task][1] == f"{own['label'].mean():.1%}"
    assert samples["**all**"][0] == f"{index.height:,}"
    exported = export_card(prepared, "meds", 0)
    for heading in ("Settings", "Patients", "Tables", "Samples"):
        assert section(text, heading) == section(exported, heading)
    assert str(smoke.parent) not in text
    assert "hf/DATA_CARD.md" not in damage.read_manifest(smoke / stage)["files"]


def test_the_data_card_of_a_closed_model_tells_of_no_few_patients(closed: Path) -> None:
    prepared = Prepared(closed)
    text = model_data_card(prepared, "adapt")
    assert "`data=synthetic`, closed (data.open=false)" in text
    assert "## Answers" not in text and "## Rows in the window" not in text
    sizes = prepared.splits["split"].value_counts()["count"].to_list()
    assert min(sizes) < 10 < max(sizes)
    patients = section(text, "Patients")
    assert {cell for split in ("train", "validation", "test") for cell in patients[split]} == {"-"}
    counted = prepared.index().group_by("task", "split").agg(pl.col("subject_id").n_unique())
    samples, hidden = section(text, "Samples"), set()
    for task, split, asked in counted.iter_rows():
        cells = samples[task][2 * ("train", "validation", "test").index(split) :][:2]
        assert (cells[0] == "-") == (asked < 10)
        hidden |= {split} if asked < 10 else set()
    assert hidden and all(
        (cell == "-") == (split in hidden)
        for split, cell in zip(
            ("train", "validation", "test"), samples["**all**"][::2], strict=True
        )
    )
    left_out = [row for row in text.split("## Left out")[1].splitlines() if row.startswith("| ")]
    assert not [row for row in left_out if re.search(r"\| [1-9] \|$", row)]
    tables = section(text, "Tables")
    assert not [cell for row in tables.values() for cell in row if re.fullmatch("[1-9]", cell)]


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("mimic", "Credentialed Health Data License 1.5.0"),
        ("ehrshot", "Stanford's research use agreement"),
        ("meds", "those under which whoever gave them has given them"),
    ],
)
def test_terms_of_closed_records(closed: Path, tmp_path: Path, name: str, terms: str) -> None:
    folder = tmp_path / "prepare"
    shutil.copytree(closed, folder, symlinks=True)
    settings = read_yaml(folder / "config.yaml")
    settings["data"]["name"] = name
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    assert terms in model_data_card(Prepared(folder), "rl")


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
