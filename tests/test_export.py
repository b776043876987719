"""stage=export: rows that are ready to use."""

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from ehrr1.errors import UserError
from ehrr1.files import write_json
from ehrr1.prompts.messages import answer_text
from ehrr1.records.markdown import record_markdown
from ehrr1.runs import Run
from ehrr1.stages import export
from ehrr1.tasks.candidates import Candidates
from ehrr1.tasks.catalog import TASKS
from tests.settings import composed
from tests.test_records import hospital, prepared

__all__ = ["hospital"]  # a fixture


@pytest.fixture(scope="module")
def folder(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepare")
    tasks = ["ED_Hospitalization", "ICU_Mortality_7day", "emar", "next_event", "discharge"]
    _, metrics = prepared(hospital, folder, tasks=tasks)
    write_json(folder / "metrics.json", metrics)
    return folder


def exported(prepare: Path, out: Path, split: str, limit: int | None) -> list[dict[str, Any]]:
    out.mkdir(exist_ok=True)
    cfg = composed(export={"split": split, "limit": limit})
    metrics = export.write(cfg, Run(out, "export", {"prepare": prepare}))
    rows = [json.loads(line) for line in (out / "samples.jsonl").open(encoding="utf-8")]
    assert metrics == {"rows": len(rows)}
    return rows


def test_rows_are_the_benchmarks(folder: Path, tmp_path: Path) -> None:
    rows = exported(folder, tmp_path, "test", None)
    world = export.Prepared(folder)
    samples = world.samples("test")
    candidates = Candidates(world, seed=0)
    assert [row["sample_id"] for row in rows] == [sample.sample_id for sample in samples]
    assert [row["idx"] for row in rows] == list(range(len(rows)))
    assert {row["task_info"]["task"] for row in rows} >= {"ED_Hospitalization", "emar"}
    for row, sample in list(zip(rows, samples, strict=True))[:: max(1, len(rows) // 50)]:
        task = TASKS[sample.task]
        assert list(row["task_info"]) == [
            *("target_key", "metric", "bid_event", "task_type", "instruction", "subject_id"),
            *("hadm_id", "task", "event", "target", "label"),
        ]
        assert row["instruction"] == task.instruction
        assert row["input"] == record_markdown(world.context(sample))
        assert row["output"] == answer_text(sample.target)
        risk = task.kind == "risk"
        assert row["candidates"] == (["yes", "no"] if risk else candidates(sample) or None)
        assert (row["candidates"] is None) == (task.target == "text")
        assert row["task_info"]["metric"] in (
            ["aucroc"] if risk else ["em", "recall", "acc", "rouge"]
        )
        assert row["messages"][1]["content"].startswith(row["input"] + "\n\n" + row["instruction"])
        assert row["messages"][1]["content"].endswith(
            " /think" if task.kind == "decision" else " /no_think"
        )
        until = datetime.fromisoformat(row["available_until"])
        now = datetime.fromisoformat(row["prediction_time"])
        assert until < now or (task.kind == "risk" and until == now)


def test_limit_and_all(folder: Path, tmp_path: Path) -> None:
    first = exported(folder, tmp_path, "all", 7)
    assert len(first) == 7
    counts = {s: export.Prepared(folder).index(s).height for s in ("train", "validation", "test")}
    assert export.Prepared(folder).index().height == sum(counts.values())
    assert len(exported(folder, tmp_path, "validation", None)) == counts["validation"]


def test_an_empty_split_is_named(hospital: Path, tmp_path: Path) -> None:
    _, metrics = prepared(hospital, tmp_path / "prepare", split={"validation": 0.0, "test": 0.2})
    assert metrics["samples/emar"] > 0
    with pytest.raises(UserError, match=r"split=validation: it has no samples"):
        exported(tmp_path / "prepare", tmp_path / "export", "validation", None)
    assert list((tmp_path / "export").iterdir()) == []


def test_prepare_and_export_do_not_wait_for_torch() -> None:
    code = (
        "import sys, ehrr1.stages.prepare, ehrr1.stages.export;"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
