"""The store in shards: built by one process or several, at once or after a kill, it is the same."""

import shutil
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ehrr1.records.shard_buffer import Spool
from ehrr1.records.source import Shards
from ehrr1.tasks import build
from tests.conftest import CommandLine
from tests.test_records import hospital, prepared, same_records, store_rows

__all__ = ["hospital"]


def test_shards_are_ranges_of_patients() -> None:
    shards = Shards.divide(pl.Series([50, 10, 20, 40, 30]), 2)
    assert shards.firsts == (10, 30, 50)
    numbers = shards.number(pl.Series([None, 5, 10, 29, 30, 49, 50, 99]))
    assert numbers.to_list() == [0, 0, 0, 0, 1, 1, 2, 2]


def test_shards_change_nothing(hospital: Path, tmp_path: Path) -> None:
    whole, counts = prepared(hospital, tmp_path / "whole")
    sharded, shard_counts = prepared(hospital, tmp_path / "sharded", patients_per_shard=7)
    assert len(list((tmp_path / "sharded" / "store").glob("0*"))) == 6
    assert_frame_equal(store_rows(tmp_path / "whole"), store_rows(tmp_path / "sharded"))
    assert_frame_equal(whole.index().drop("target_row"), sharded.index().drop("target_row"))
    for one, other in zip(whole.samples()[::97], sharded.samples()[::97], strict=True):
        assert one == other
        assert whole.context(one) == sharded.context(other)
    assert {k: v for k, v in counts.items() if "/" in k and "seconds" not in k} == {
        k: v for k, v in shard_counts.items() if "/" in k and "seconds" not in k
    }


def test_rows_on_disk_are_the_rows_in_memory(
    hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(hospital, tmp_path / "memory", patients_per_shard=15)
    monkeypatch.setattr("ehrr1.records.shard_buffer.LIMIT_BYTES", 100_000)
    monkeypatch.setattr("ehrr1.records.reading.BATCH_ROWS", 500)
    prepared(hospital, tmp_path / "disk", patients_per_shard=15)
    same_records(tmp_path / "memory", tmp_path / "disk")
    assert not list((tmp_path / "disk" / "store").glob(".*"))


def test_a_killed_run_goes_on_with_what_is_missing(
    hospital: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def killed(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return write_shard(*arguments)

    write_shard = build.write_shard
    monkeypatch.setattr(build, "write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        prepared(hospital, tmp_path / "run", patients_per_shard=10)
    done = sorted((tmp_path / "run" / "store").glob("0*/rows.arrow"))
    assert 2 <= len(done) < 4
    times = [path.stat().st_mtime_ns for path in done]
    monkeypatch.setattr(build, "write_shard", write_shard)
    prepared(hospital, tmp_path / "run", patients_per_shard=10)
    assert [path.stat().st_mtime_ns for path in done] == times
    prepared(hospital, tmp_path / "whole", patients_per_shard=10)
    same_records(tmp_path / "run", tmp_path / "whole")


def test_a_spool_gives_back_what_it_was_given(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    frame = pl.DataFrame({"shard": [0, 1, 0], "row": [1, 2, 3]})
    spool.add(frame)
    spool.add(frame)
    assert pl.concat(spool.take(0))["row"].to_list() == [1, 3, 1, 3]
    assert spool.take(0) == []


def test_processes_share_the_work(
    hospital: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    root = f"data.root={hospital}"
    common = ("data=mimic", root, "data.patients_per_shard=6", "stage=prepare")
    alone = command_line(*common, f"output_root={tmp_path / 'alone'}")
    assert alone.returncode == 0, alone.stderr[-2000:]
    shared = (*common, f"output_root={tmp_path / 'shared'}", "data.shards=3")
    first = command_line(*shared, "data.shard=1")
    assert first.returncode == 0, first.stderr[-2000:]
    assert "5 shards are missing" in first.stderr
    others = command_line("-m", *shared, "data.shard=range(0,3)", cwd=tmp_path)
    assert others.returncode == 0, others.stderr[-2000:]
    folders = [tmp_path / kind / "released/mimic/prepare" for kind in ("alone", "shared")]
    same_records(*folders)
    assert (folders[1] / "metrics.json").exists()
    again = command_line(*shared)
    assert "finished already" in again.stderr
    refused = command_line(*shared[:-1], "data.shard=16")
    assert refused.returncode == 2
    assert "data.shard=16" in refused.stderr
    shutil.rmtree(tmp_path / "shared")
