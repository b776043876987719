"""stage=card: what prepare holds, as Markdown."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from ehrr1.errors import UserError
from ehrr1.files import write_json
from ehrr1.prompts.lengths import measures, prompt_lengths
from ehrr1.prompts.wording import OURS
from ehrr1.records.markdown import record_markdown
from ehrr1.runs import ALWAYS_AGAIN, Run
from ehrr1.stages import card
from ehrr1.tasks.card_sections import lost_by_table, table
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.samples import Prepared
from tests.metrics_page import not_on_the_page
from tests.settings import composed, record
from tests.test_records import configured, hospital, prepared

__all__ = ["hospital"]  # a fixture

SETTINGS: dict[str, Any] = {"labels": {"ed_time": "triage"}, "maps": {"atc": None}}


@pytest.fixture(scope="module")
def folder(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepare")
    _, metrics = prepared(hospital, folder, **SETTINGS)
    record(configured(hospital, **SETTINGS), folder)
    write_json(folder / "metrics.json", metrics)
    return folder


@pytest.fixture(scope="module")
def word_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One token a word."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def made(prepare: Path, out: Path, **settings: Any) -> str:
    out.mkdir(exist_ok=True)
    cfg = composed(card={"samples_per_task": 4, "max_tokens": 1500} | settings)
    metrics = card.run(cfg, Run(out, "card", {"prepare": prepare}))
    assert not not_on_the_page("card", metrics)
    assert metrics["samples"] == Prepared(prepare).index().height
    assert 0 < metrics["measured"] <= 3 * 4 * len(TASKS)
    return (out / "card.md").read_text(encoding="utf-8")


def section(text: str, heading: str) -> dict[str, list[str]]:
    """The rows of a section's table by their first cell."""
    body = text.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in body.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows}


def test_counts_are_those_of_the_index(folder: Path, tmp_path: Path) -> None:
    text = made(folder, tmp_path)
    index = Prepared(folder).index()
    rows = section(text, "Samples")
    assert set(TASKS) <= set(rows)
    risk = index.filter((pl.col("task") == "ED_Hospitalization") & (pl.col("split") == "train"))
    assert rows["ED_Hospitalization"][:2] == [str(risk.height), f"{risk['label'].mean():.1%}"]
    assert rows["**all**"][0] == f"{index.filter(pl.col('split') == 'train').height:,}"
    assert section(text, "Patients")["train"][0] == "28"
    tables = section(text, "Tables")
    assert tables["labevents"][0] == tables["labevents"][1] == "6,742"
    assert section(text, "Rows in the window")["emar"][2] == str(
        index.filter(pl.col("task") == "emar")["n_context_rows"].max()
    )
    answers = section(text, "Answers")["next_event"]
    assert answers[1:3] == ["1.0", "1"]
    assert int(section(text, "Left out, with the reason")["medrecon_atc"][1]) > 0


def test_what_is_missing_is_named_with_its_cost(folder: Path, tmp_path: Path) -> None:
    rows = section(made(folder, tmp_path), "What is missing")
    assert rows["data.maps.atc"] == ["no samples of prescriptions_atc, medrecon_atc"]
    assert "ICU_Readmission, ED_ICU_Tranfer_12hour, ED_Crit" in lost_by_table("icustays")
    assert lost_by_table("triage") == "its rows stand in no context"
    assert lost_by_table("hcpcsevents") == "nothing: it is never shown"


def test_settings_name_no_path(folder: Path, hospital: Path, tmp_path: Path) -> None:
    text = made(folder, tmp_path)
    assert str(hospital) not in text and str(folder) not in text
    rows = section(text, "Settings")
    assert rows["root"] == ["given"] and rows["maps.atc"] == ["null"]
    assert rows["labels.ed_time"] == ["triage"] and rows["balance"] == ["none"]


def test_the_same_card_again(folder: Path, tmp_path: Path) -> None:
    assert made(folder, tmp_path / "one") == made(folder, tmp_path / "two")
    assert "card" in ALWAYS_AGAIN


def test_lengths_in_tokens_and_what_is_cut(
    folder: Path, tmp_path: Path, word_tokenizer: Path
) -> None:
    text = made(folder, tmp_path, tokenizer=str(word_tokenizer))
    world = Prepared(folder)
    for task in ("emar", "ICU_Stay_7day"):
        index = world.index("test", [task]).head(4)
        found = prompt_lengths(world, index, measures(word_tokenizer))["tokens"].sort()
        expected = []
        for sample in world.as_samples(index):
            think = TASKS[task].kind == "decision"
            chat = OURS.chat(task, record_markdown(world.context(sample)), think=think)
            expected.append(sum(len(message["content"].split()) for message in chat))
        assert found.to_list() == sorted(expected)
    rows = section(text, "Lengths of prompts")
    cut = [float(cell.rstrip("%")) for cells in rows.values() for cell in cells if "%" in cell]
    assert min(cut) == 0 and max(cut) > 50
    assert "prompts above 1,500 tokens" in text
    words = section(made(folder, tmp_path), "Lengths of prompts")
    assert words["emar"][0] == rows["emar"][0]


def test_a_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"card\.tokenizer=.*tokenizer\.json"):
        measures(tmp_path)


def test_tables() -> None:
    assert table(["a", "b"], [("x|y", "1,000"), ("", "")]).splitlines() == [
        "| a | b |", "| --- | --: |", "| x/y | 1,000 |", "|  |  |",
    ]  # fmt: skip


def test_no_torch() -> None:
    code = "import sys, ehrr1.stages.card; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
