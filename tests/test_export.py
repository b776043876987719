"""stage=export: rows that are ready to use, as JSON lines and as Parquet."""

import json
import random
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from benchmarks.export_speed import digest, rows_of
from ehrr1.damage import DamagedError
from ehrr1.errors import UserError
from ehrr1.files import read_json, write_json
from ehrr1.prompts.messages import answer_text
from ehrr1.prompts.record_texts import RecordTexts
from ehrr1.prompts.wording import style_of
from ehrr1.records.markdown import record_markdown
from ehrr1.runs import Run
from ehrr1.stages import export, export_dataset
from ehrr1.tasks.candidates import Candidates
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.samples import Prepared
from tests.metrics_page import not_on_the_page
from tests.settings import composed
from tests.test_records import hospital, prepared

__all__ = ["hospital"]  # a fixture

FEW = ["ED_Hospitalization", "ICU_Mortality_7day", "emar", "discharge"]


@pytest.fixture(scope="module")
def folder(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepare")
    _, metrics = prepared(hospital, folder, tasks=[*FEW, "next_event"])
    write_json(folder / "metrics.json", metrics)
    return folder


def written(prepare: Path, out: Path, *overrides: str) -> tuple[Path, dict[str, float | int]]:
    """Export to `out`, in this process."""
    out.mkdir(exist_ok=True)
    metrics = export.write(
        composed("export.workers=1", *overrides), Run(out, "export", {"prepare": prepare})
    )
    assert not not_on_the_page("export", metrics)
    return out, metrics


def exported(prepare: Path, out: Path, split: str, limit: int | None) -> list[dict[str, Any]]:
    asked = [f"export.split={split}", f"export.limit={'null' if limit is None else limit}"]
    written(prepare, out, "export.layout=rows", *asked)
    return [json.loads(line) for line in (out / "samples.jsonl").open(encoding="utf-8")]


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


@pytest.fixture(scope="module")
def exports(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The samples of `FEW` tasks in each layout, in several groups of rows."""
    root = tmp_path_factory.mktemp("exports")
    whole = ["export.split=all", f"data.tasks=[{','.join(FEW)}]"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_dataset, "PART_ROWS", 1500)
        patch.setattr(export_dataset, "SAMPLES_AT_ONCE", 300)
        patch.setattr(export_dataset, "BYTES_AT_ONCE", 500_000)
        return {
            layout: written(folder, root / layout, f"export.layout={layout}", *whole)[0]
            for layout in ("parquet", "jsonl", "jsonl.zst", "rows")
        }


def test_layouts_hold_the_same_rows(exports: dict[str, Path], folder: Path) -> None:
    digests = {layout: digest(rows_of(path)) for layout, path in exports.items()}
    assert len(set(digests.values())) == 1, digests
    assert digests["rows"].startswith(f"{Prepared(folder).index(tasks=FEW).height} rows")
    with (exports["jsonl"] / "samples.jsonl").open(encoding="utf-8") as lines:
        assert not any("messages" in json.loads(line) for line in lines)
    sizes = {
        layout: sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        for layout, folder in exports.items()
    }
    assert sizes["parquet"] < sizes["rows"] / 10


def test_processes_change_nothing(
    exports: dict[str, Path], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_dataset, "PART_ROWS", 4000)
    whole = ["export.split=all", f"data.tasks=[{','.join(FEW)}]", "export.workers=2"]
    out, _ = written(folder, tmp_path / "two", *whole)
    for path in (out / "dataset").rglob("*.parquet"):
        one = exports["parquet"] / path.relative_to(out)
        assert_frame_equal(pl.read_parquet(path), pl.read_parquet(one))


def test_a_context_is_written_once(exports: dict[str, Path]) -> None:
    for split in ("train", "validation", "test"):
        place = exports["parquet"] / "dataset" / split
        contexts = pl.read_parquet(place / "contexts.parquet")
        samples = pl.read_parquet(place / "samples.parquet")
        assert contexts["context_id"].is_unique().all()
        assert set(samples["context_id"]) == set(contexts["context_id"])
        shown = samples.join(contexts, on="context_id").select("subject_id", "text")
        assert shown.n_unique() == contexts.height < samples.height
        assert pq.ParquetFile(place / "contexts.parquet").num_row_groups > 1


def test_datasets_opens_the_folder(
    exports: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its card says: both configurations, their splits, and the chat of a sample."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets  # here, as importing it takes a second

    place = str(exports["parquet"] / "dataset")
    samples = datasets.load_dataset(place, "samples", cache_dir=str(tmp_path))
    contexts = datasets.load_dataset(place, "contexts", cache_dir=str(tmp_path))
    assert set(samples) == set(contexts) == {"train", "validation", "test"}
    default = datasets.load_dataset(place, split="test", streaming=True)
    assert next(iter(default)) == samples["test"][0]
    rows = [json.loads(line) for line in (exports["rows"] / "samples.jsonl").open()]
    chats = {row["sample_id"]: row["messages"] for row in rows}
    assert sum(map(len, samples.values())) == len(chats)
    style = style_of("file", "eval")
    for split, questions in samples.items():
        row_of = {name: row for row, name in enumerate(contexts[split]["context_id"])}
        for number in random.Random(0).sample(range(len(questions)), 20):
            sample = questions[number]
            record = contexts[split][row_of[sample["context_id"]]]["text"]
            assert sample["split"] == split and chats[sample["sample_id"]] == [
                {"role": "system", "content": style.system},
                {"role": "user", "content": record + style.joint + sample["question"]},
            ]


def test_the_card_says_whose_records_these_are(folder: Path, tmp_path: Path) -> None:
    decided = read_json(folder / "open.json")
    said = {}
    for number, closed in enumerate((False, True)):
        write_json(folder / "open.json", {"open": False, "why": "neither"} if closed else decided)
        out, _ = written(folder, tmp_path / str(number), "export.limit=3")
        said[closed] = (out / "dataset" / "README.md").read_text(encoding="utf-8")
    write_json(folder / "open.json", decided)
    assert "The records are open: invented patients." in said[False]
    assert "The records are closed" in said[True] and "open" not in said[True].split("|")[0]
    sample = pl.read_parquet(tmp_path / "1" / "dataset" / "test" / "samples.parquet")
    assert sample.height == 3 and not any(id_ in said[True] for id_ in sample["sample_id"])


@pytest.mark.parametrize("wording", ["file", "release"])
@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_records_are_those_of_the_contexts(
    hospital: Path, tmp_path: Path, protocol: str, wording: Any
) -> None:
    """Events that are printed once are the same in every context that shows them."""
    world, _ = prepared(hospital, tmp_path, protocol=protocol)
    style = style_of(wording, "eval")
    texts, again = RecordTexts(world, style), RecordTexts(world, style)
    samples = world.samples("test")
    own = random.Random(0).sample(samples, min(300, len(samples)))
    in_turn = sorted(own, key=lambda sample: (sample.subject_id, sample.prediction_time))
    shown = {sample.sample_id: texts(sample) for sample in in_turn}
    for sample in own:
        events = world.context(sample)
        known = [event.available_time for event in events if event.available_time is not None]
        assert shown[sample.sample_id].text == style.record(events)
        assert shown[sample.sample_id].available_until == max(known, default=None)
        assert again(sample) == shown[sample.sample_id]


def test_only_the_rows_asked_for_are_read(folder: Path, tmp_path: Path) -> None:
    world = Prepared(folder)
    parts = list(world.batches(1000))
    assert all(0 < part.height <= 1000 for part in parts) and len(parts) > 1
    assert_frame_equal(pl.concat(parts), world.index())
    # an index whose last rows are unreadable
    copy = tmp_path / "prepare"
    copy.mkdir()
    world.index().write_parquet(copy / "index.parquet", row_group_size=100)
    groups = pq.ParquetFile(copy / "index.parquet").metadata
    last = groups.row_group(groups.num_row_groups - 1).column(0)
    with (copy / "index.parquet").open("r+b") as file:
        file.seek(last.dictionary_page_offset or last.data_page_offset)
        file.write(bytes(last.total_compressed_size))
    assert next(Prepared(copy).batches(10)).equals(world.index().head(10))
    with pytest.raises(DamagedError, match=r"index.parquet cannot be read"):
        list(Prepared(copy).batches(10))


def test_tasks_are_chosen(folder: Path, tmp_path: Path) -> None:
    some = ["ICU_Mortality_7day", "discharge"]
    asked = ["export.layout=jsonl", "export.split=all", f"data.tasks=[{','.join(some)}]"]
    out, metrics = written(folder, tmp_path / "a", *asked)
    rows = [json.loads(line) for line in (out / "samples.jsonl").open(encoding="utf-8")]
    assert len(rows) == metrics["rows"] == Prepared(folder).index(tasks=some).height
    assert {row["task_info"]["task"] for row in rows} == set(some)
    with pytest.raises(UserError, match=r"data.tasks: labs is no task; the tasks are"):
        written(folder, tmp_path / "b", "data.tasks=[labs]")
    with pytest.raises(
        UserError, match=r"data.tasks=\[omr\]: the split test has no samples of them"
    ):
        written(folder, tmp_path / "c", "data.tasks=[omr]")


def test_prepare_and_export_do_not_wait_for_torch() -> None:
    code = (
        "import sys, ehrr1.stages.prepare, ehrr1.stages.export;"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
