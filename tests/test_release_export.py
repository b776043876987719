"""stage=export as the release's reader reads it: by a reader that knows the format and nothing of
the package, tried on the release's own folder first."""

import json
from pathlib import Path
from typing import Any

import pytest

from ehrr1.files import write_json
from ehrr1.prompts.wording import style_of
from ehrr1.runs import Run
from ehrr1.stages import export
from ehrr1.tasks.samples import Prepared, Sample
from tests.metrics_page import not_on_the_page
from tests.release_reader import ReleaseReader
from tests.settings import composed, record
from tests.test_records import configured, hospital, prepared

__all__ = ["hospital"]  # a fixture

FILES = (
    *("ehr_ins/ehr_ins", "ehr_bench/ehr_bench_decision_making"),
    "ehr_bench/ehr_bench_risk_prediction",
)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_reader_reads_the_releases_own_folder(released: Path) -> None:
    reader = ReleaseReader(released)
    found = {
        (row["task"], row["subject_id"], row["period_begin"], row["period_end"]): row
        for name in FILES[1:]
        for row in reader.samples(name)
    }
    ready = rows_of(released / "ehr_bench.jsonl")
    for row in ready:
        told = row["task_info"]
        key = told["task"], told["subject_id"], told["period_begin"], told["period_end"]
        for name in ("input", "output", "label"):
            assert found[key][name] == (told["label"] if name == "label" else row[name]), key


@pytest.fixture(scope="module", params=["demo", "synthetic"])
def exported(
    request: pytest.FixtureRequest,
    mimic_demo: Path,
    hospital: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Prepared, Path]:
    """Prepared by the paper's protocol from real and from invented tables, and exported."""
    folder = tmp_path_factory.mktemp(request.param)
    root = mimic_demo if request.param == "demo" else hospital
    settings: dict[str, Any] = {"protocol": "paper", "force_task_num": 30}
    world, metrics = prepared(root, folder, **settings)
    record(configured(root, **settings), folder)
    write_json(folder / "metrics.json", metrics)
    out = tmp_path_factory.mktemp("export")
    run = Run(out, "export", {"prepare": folder})
    written = export.write(composed("export.layout=release", "wording=release"), run)
    assert not not_on_the_page("export", written)
    return world, out / "release"


def sample_key(sample: Sample) -> tuple[Any, ...]:
    return sample.task, sample.subject_id, sample.period_begin, sample.period_end


def test_the_reader_finds_the_same_samples(exported: tuple[Prepared, Path]) -> None:
    world, root = exported
    reader, style = ReleaseReader(root), style_of("release", "eval")
    samples = {sample_key(sample): sample for sample in world.samples()}
    found = 0
    for name in FILES:
        rows = reader.samples(name)
        found += len(rows)
        for row in rows:
            key = row["task"], row["subject_id"], row["period_begin"], row["period_end"]
            sample = samples[key]
            answer = row["label"] if isinstance(row["label"], list) else [row["label"]]
            assert answer == list(sample.target), key
            assert row["input"] == style.record(world.context(sample)), key
    validation = len(world.samples("validation"))
    assert found + validation == len(samples)


def test_rows_have_the_releases_keys(exported: tuple[Prepared, Path], released: Path) -> None:
    theirs = {row["task_info"]["task"]: row for row in rows_of(released / "ehr_bench.jsonl")}
    ours = rows_of(exported[1] / "ehr_bench" / "ehr_bench.jsonl")
    assert {row["task_info"]["task"] for row in ours} & theirs.keys()
    for row in ours:
        other = theirs.get(row["task_info"]["task"])
        if other is None:
            continue
        assert other.keys() <= row.keys() and other["task_info"].keys() <= row["task_info"].keys()
        for name in ("target_key", "metric", "bid_event", "task_type", "task"):
            assert row["task_info"][name] == other["task_info"][name], name
        for name in ("label", "target", "event"):
            kind = type(other["task_info"][name])
            assert isinstance(row["task_info"][name], kind), name
        assert isinstance(row["output"], str) and isinstance(row["input"], str)
        listed = row["candidates"]
        assert listed is None or (listed == ["yes", "no"]) == (other["candidates"] is not None)


def test_similar_items_are_wide(exported: tuple[Prepared, Path]) -> None:
    found = ReleaseReader(exported[1]).similar("labevents")
    assert found and all(isinstance(name, str) for near in found.values() for name in near)


def test_what_came_in_goes_out_as_it_was(released: Path, tmp_path: Path) -> None:
    """The release's folder, read and exported: every tested row prints as before."""
    folder = tmp_path / "prepare"
    _, metrics = prepared(released, folder, name="release", protocol="paper")
    record(composed("data=release", f"data.root={released}"), folder)
    write_json(folder / "metrics.json", metrics)
    (tmp_path / "export").mkdir()
    run = Run(tmp_path / "export", "export", {"prepare": folder})
    export.write(composed("data=release", f"data.root={released}", "export.layout=release"), run)
    before, after = ReleaseReader(released), ReleaseReader(tmp_path / "export" / "release")
    for name, number in zip(FILES[1:], (1567, 100), strict=True):
        was, now = ({row_key(row): row for row in r.samples(name)} for r in (before, after))
        assert len(was) == number and was.keys() == now.keys()
        for key, row in was.items():
            assert now[key]["input"] == row["input"] and now[key]["label"] == row["label"], key


def row_key(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["task"], row["subject_id"], row["period_begin"], row["period_end"]
