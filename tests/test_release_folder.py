"""data=release on a folder that the release's own code wrote, held beside its own ready rows."""

import csv
import gzip
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ehrr1.errors import UserError
from ehrr1.records.markdown import released_markdown
from ehrr1.records.release.archives import unpack
from ehrr1.stages.reason import kept_chains
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.release.rows import chain_of, items_of
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.tasks.similar import read_similar
from tests.test_records import Metrics, prepared

Rows = list[dict[str, Any]]
INDEX_FILES = (
    *("ehr_ins/ehr_ins", "ehr_bench/ehr_bench_decision_making"),
    "ehr_bench/ehr_bench_risk_prediction",
)


@pytest.fixture(scope="module")
def world(released: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, Metrics]:
    folder = tmp_path_factory.mktemp("release")
    return prepared(released, folder, name="release", protocol="paper")


@pytest.fixture(scope="module")
def ready(released: Path) -> Rows:
    """The release's ready rows: prompt and answer by its own code."""
    lines = (released / "ehr_bench.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def index_rows(root: Path) -> Iterator[dict[str, str]]:
    for name in INDEX_FILES:
        with (root / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file)


def sample_of(row: dict[str, Any]) -> str:
    return f"{row['task']}/{row['subject_id']}/{row['period_begin']}-{row['period_end']}"


def test_every_row_is_a_sample_with_its_own_answer(
    released: Path, world: tuple[Prepared, Metrics]
) -> None:
    samples = {sample.sample_id: sample for sample in world[0].samples()}
    rows = list(index_rows(released))
    assert len(rows) == len(samples) == 7264
    assert sum(TASKS[row["task"]].kind == "risk" for row in rows) == 280
    for row in rows:
        target = json.loads(row["target"])
        assert list(samples[sample_of(row)].target) == (
            target if isinstance(target, list) else [target]
        )
    kept = sum(int(n) for name, n in world[1].items() if name.startswith("samples/"))
    assert kept == len(rows) and not [name for name in world[1] if name.startswith("excluded/")]


def test_records_print_as_the_release_prints_them(
    world: tuple[Prepared, Metrics], ready: Rows
) -> None:
    samples: dict[str, Sample] = {sample.sample_id: sample for sample in world[0].samples("test")}
    assert len(ready) == 108
    for row in ready:
        sample = samples[sample_of(row["task_info"])]
        text = "\n\n".join(map(released_markdown, world[0].context(sample)))
        assert text == row["input"], row["idx"]


def test_laboratory_and_charted_rows_have_names(world: tuple[Prepared, Metrics]) -> None:
    for task, number in (("labevents", 198), ("chartevents", 335), ("outputevents", 239)):
        assert world[1][f"samples/{task}"] == number
    assert world[1]["samples/prescriptions_atc"] == 218
    assert "missing_maps/atc" not in world[1]


def test_next_event_is_answered_by_a_table(world: tuple[Prepared, Metrics]) -> None:
    answers = {sample.target for sample in world[0].samples(tasks=["next_event"])}
    assert ("labevents",) in answers and all(len(a) == 1 and a[0].islower() for a in answers)


def test_wide_lists_of_similar_items(released: Path, tmp_path: Path) -> None:
    found = read_similar(released / "cache" / "similar_item")["labevents"]
    assert found["Creatinine"][:2] == ["Urea Nitrogen", "Sodium"]
    (tmp_path / "labevents.csv").write_text("item,0,1\na,b,c\nb,a,\n")
    assert read_similar(tmp_path)["labevents"] == {"a": ["b", "c"], "b": ["a"]}


# --- what the published folder has besides ---------------------------------------------------


@pytest.fixture(scope="module")
def published(released: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder as it is published: packed lists, chains, and a file for reinforcement learning,
    in the forms that the release's code reads."""
    root = tmp_path_factory.mktemp("published") / "release"
    shutil.copytree(released, root)
    with (root / "ehr_ins/ehr_ins.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    columns = list(rows[0])
    with (root / "ehr_ins/ehr_ins_reasoning.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*columns, "reasoning"])
        writer.writeheader()
        cells = ["## Reasoning\n'a'", "['first', 'second']", "", "[]"]
        cells += ["{'choices': [{'message': {'content': 'said'}}], 'created': nan}"]
        writer.writerows(
            row | {"reasoning": cell} for row, cell in zip(rows[:5], cells, strict=True)
        )
    with (root / "ehr_ins/ehr_ins_rl.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows[5:8])
    with tarfile.open(root / "patients_ehr.tar.gz", "w:gz") as archive:
        archive.add(root / "patients_ehr", "patients_ehr")
    shutil.rmtree(root / "patients_ehr")
    return root


def test_chains_and_the_samples_of_each_stage(published: Path, tmp_path: Path) -> None:
    world, metrics = prepared(published, tmp_path / "x", name="release", protocol="paper")
    samples = {sample.sample_id: sample for sample in world.samples("train")}
    assert metrics["given_chains/read"] == 5 and metrics["given_chains/kept"] == 3
    assert metrics["given_chains/reported/no_chain"] == 2
    chains = kept_chains(world.folder / "chains.jsonl")
    assert [chain for chain, _ in chains.values()] == ["## Reasoning\n'a'", "first", "said"]
    for name, (_, answer) in chains.items():
        assert answer.split("\n") == sorted(samples[name].target)
    counts = {
        stage: world.scan_training(stage, ["datetimeevents"]).collect().height
        for stage in ("adapt", "reason", "rl")
    }
    assert counts == {"adapt": 98, "reason": 5, "rl": 3}
    again = sum(int(n) for name, n in metrics.items() if name.endswith("/in_another_row_too"))
    assert again == 8


def test_a_damaged_archive_is_refused(published: Path, tmp_path: Path) -> None:
    whole = (published / "patients_ehr.tar.gz").read_bytes()
    broken = bytearray(gzip.decompress(whole))
    flipped = bytearray(whole)
    flipped[-6] ^= 1  # of the CRC: everything before it can be read
    for name, data in (("crc", flipped), ("cut", whole[:-20]), ("plain", broken)):
        path = tmp_path / f"{name}.tar.gz"
        path.write_bytes(bytes(data))
        with pytest.raises(UserError, match=r"cannot be unpacked .*: fetch it again"):
            unpack(path, tmp_path / name)
        assert not (tmp_path / name).exists()


def test_targets_and_chains_in_every_form() -> None:
    assert items_of('"no"') == ["no"] and items_of("no") == ["no"] and items_of("nan") == []
    assert items_of('["a", "b"]') == items_of("['a', 'b']") == ["a", "b"]
    assert items_of("5") == ["5"] and items_of(None) == []
    assert chain_of("text") == "text" and chain_of('["a", "b"]') == "a"
    assert chain_of('{"choices": [{"message": {"content": "c"}}]}') == "c"
    assert chain_of("{'error': 1}") is None and chain_of(None) is None


def test_a_tested_patient_does_not_train(released: Path, tmp_path: Path) -> None:
    root = tmp_path / "release"
    shutil.copytree(released, root)
    index = root / "ehr_ins" / "ehr_ins.csv"
    with (root / "ehr_bench/ehr_bench_risk_prediction.csv").open() as file:
        row = file.readlines()[1]
    index.write_text(index.read_text() + row)
    world, metrics = prepared(root, tmp_path / "x", name="release", protocol="paper")
    assert sum(int(n) for k, n in metrics.items() if k.endswith("/patient_is_tested")) == 1
    splits = world.index().select("subject_id", "split").unique()
    assert splits["subject_id"].is_unique().all()
    assert splits.filter(pl.col("split") == "test").height == 8
