"""stage=eval by the command line: resumed, shared, scored again, in every mode, on any model."""

import json
import shutil
import signal
import time
from pathlib import Path

import polars as pl
import pytest
import torch

from ehrr1 import parallel
from ehrr1.errors import UserError
from ehrr1.evaluation.opening import device
from ehrr1.evaluation.predictions import SCHEMA
from ehrr1.tasks.catalog import SUITES
from tests.conftest import CommandLine, StartCommand
from tests.settings import composed
from tests.test_ehrshot import assets

QUICK = ("experiment=smoke", "stage=eval")


def predictions(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "predictions.parquet").sort("model", "split", "sample_id")


def metrics(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text())


def same_answers(one: pl.DataFrame, other: pl.DataFrame) -> None:
    """Equal but for the last bits, which depend on what was computed side by side."""
    numbers = ["probability", "logprob_yes", "logprob_no"]
    assert one.drop(numbers).equals(other.drop(numbers))
    for name in numbers:
        assert one[name].is_null().equals(other[name].is_null())
        assert ((one[name] - other[name]).abs().fill_null(0) < 1e-4).all()


@pytest.fixture(scope="module")
def world(smoke: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the smoke run's stages that evaluations can write beside."""
    root = tmp_path_factory.mktemp("evaluations")
    shutil.copytree(smoke, root / "smoke")
    return root


def test_a_killed_evaluation_goes_on_with_what_is_left(
    world: Path, command_line: CommandLine, start_command: StartCommand
) -> None:
    arguments = [*QUICK, f"output_root={world}", "variant=killed"]
    folder = world / "smoke" / "killed" / "eval"
    process = start_command(*arguments)
    while not list(folder.glob("parts/*/*.parquet")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = {file: file.stat().st_mtime_ns for file in folder.glob("parts/*/*.parquet")}
    assert kept and not (folder / "metrics.json").exists()
    again = command_line(*arguments)
    assert again.returncode == 0, again.stderr[-2000:]
    same_answers(predictions(folder), predictions(world / "smoke" / "eval"))
    assert not (folder / "parts").exists()


TURNS = [
    # by hand: the share; in a batch script SLURM_LOCALID is 0, whatever the share
    ({"SLURM_LOCALID": "0"}, ["eval.shard=2", "eval.shards=8"], 2),
    ({}, ["eval.shard=5", "eval.shards=8"], 1),
    ({}, ["eval.shard=1", "eval.shards=2", "engine.tensor_parallel=2"], 2),
    ({}, [], 0),
    # by srun or torchrun on several nodes: the place in the node
    ({"WORLD_SIZE": "16", "RANK": "9", "SLURM_LOCALID": "3"}, ["eval.shard=9"], 3),
    ({"WORLD_SIZE": "16", "RANK": "9", "LOCAL_RANK": "1"}, ["engine.tensor_parallel=2"], 2),
]


@pytest.mark.parametrize(("environment", "arguments", "number"), TURNS)
def test_each_process_takes_its_own_gpu(
    environment: dict[str, str],
    arguments: list[str],
    number: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Processes of a node with four GPUs take one each; `engine=vllm`: test_vllm.py."""
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.setenv(name, environment.get(name, ""))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    if parallel.size() > 1:
        parallel.leave()
    assert device(composed("engine=vllm", *arguments)) == torch.device("cuda", number)
    with pytest.raises(UserError, match=r"engine\.tensor_parallel=8: this process sees 4 GPUs"):
        device(composed("engine=vllm", "engine.tensor_parallel=8"))


@pytest.mark.parametrize("by", ["shards", "srun"])
def test_processes_share_the_records(world: Path, command_line: CommandLine, by: str) -> None:
    """By eval.shard, and as tasks of srun or torchrun: no process waits for another."""
    arguments = [*QUICK, f"output_root={world}", f"variant={by}", "eval.models=[adapt]"]
    for number in range(2):
        place = str(number)
        group = {"WORLD_SIZE": "2", "RANK": place, "LOCAL_RANK": place}
        own = [f"eval.shard={number}", "eval.shards=2"] if by == "shards" else []
        done = command_line(*arguments, *own, **(group if by == "srun" else {}))
        assert done.returncode == 0, done.stderr[-2000:]
        left = "0 answers are missing" in done.stderr
        assert left == bool(number)
    folder = world / "smoke" / by / "eval"
    whole = predictions(world / "smoke" / "eval")
    same_answers(
        predictions(folder).filter(pl.col("model") == "adapt"),
        whole.filter(pl.col("model") == "adapt"),
    )
    name = "adapt/risk/auroc/macro"
    assert metrics(folder)[name] == pytest.approx(metrics(world / "smoke" / "eval")[name])


def test_scoring_again_needs_no_model_and_no_records(
    smoke: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    folder = tmp_path / "eval"
    shutil.copytree(smoke / "eval", folder)
    (folder / "report.html").unlink()
    (folder / "metrics.json").write_text('{"seconds": 7.5, "cpu_seconds/prefill": 1.5}')
    done = command_line(*QUICK, f"rescore={folder}", f"output_root={tmp_path}")
    assert done.returncode == 0, done.stderr[-2000:]
    known = {k: v for k, v in metrics(smoke / "eval").items() if "seco" not in k}
    found = {k: v for k, v in metrics(folder).items() if "seco" not in k}
    assert found == known and metrics(folder)["seconds"] == 7.5
    assert metrics(folder)["cpu_seconds/prefill"] == 1.5
    for phase in ("prompts", "generation", "baselines/contexts", "baselines/fits", "scores"):
        assert metrics(smoke / "eval")[f"seconds/{phase}"] > 0
    assert found["decision/f1_tolerant/macro"] >= found["decision/f1/macro"]
    assert "F1 tolerant" in (folder / "scores.txt").read_text(encoding="utf-8")
    assert (folder / "report.html").exists()


def test_the_mode_is_part_of_the_result_s_name(world: Path, command_line: CommandLine) -> None:
    done = command_line(
        *QUICK,
        f"output_root={world}",
        "variant=modes",
        "eval.models=[rl]",
        "answer=[think,both]",
        "eval.draws=2",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    folder = world / "smoke" / "modes" / "eval"
    table = predictions(folder)
    assert table.schema == SCHEMA
    assert {"rl:think", "rl:both"} < set(table["model"])
    for name, mode in (("rl:think", "think"), ("rl:both", "both")):
        rows = table.filter(pl.col("model") == name)
        assert set(rows["mode"]) == {mode} and rows["completion"].null_count() == 0
        assert set(rows["split"]) == {"validation", "test"}
    decisions = table.filter((pl.col("model") == "rl:think") & pl.col("probability").is_null())
    assert set(decisions["draw"]) == {0, 1}
    found = metrics(folder)
    assert {"rl:think/risk/auroc/macro", "rl:both/risk/auroc/macro"} <= found.keys()
    assert "rl:both-rl:think/risk/auroc/macro" in found


def test_any_folder_is_evaluated_by_the_same_command(
    world: Path, command_line: CommandLine
) -> None:
    model = world / "smoke" / "reason" / "hf"
    done = command_line(
        *QUICK,
        f"output_root={world}",
        f"model={model}",
        "candidates=list",
        "eval.max_prompt_tokens=2048",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    folder = world / "smoke" / "smoke-reason" / "eval"
    table = predictions(folder)
    assert {"smoke-reason:direct-list", "list_only", "list_frequency"} < set(table["model"])
    assert {"samples_per_second", "smoke-reason:direct-list/samples_per_second"} <= metrics(
        folder
    ).keys()


def test_another_benchmark_is_prepared_and_evaluated_by_one_command(
    world: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    """EHRSHOT's own files, the models of the experiment."""
    done = command_line(
        *QUICK,
        f"output_root={world}",
        "eval=ehrshot",
        f"data.root={assets(tmp_path / 'EHRSHOT_ASSETS')}",
        "eval.models=[adapt]",
        "eval.max_prompt_tokens=2048",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    folder = world / "smoke" / "ehrshot"
    table = predictions(folder / "eval")
    assert "adapt" in set(table["model"]) and set(table["task"]) <= set(SUITES["ehrshot"])
    assert (folder / "prepare" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["answer=maybe"], "answer=maybe"),
        (["eval.models=[best]"], "eval.models"),
        (["eval.shard=2", "eval.shards=2"], "eval.shard=2"),
        (["rescore=nowhere"], "rescore=nowhere"),
        (["compare=[nowhere]"], "compare="),
        (["eval=ehrshot"], "data.root"),
        (["engine=server", "engine.url=http://127.0.0.1:9/v1", "variant=served"], "engine.url"),
        (["model=no/where"], "model.path=no/where"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    world: Path, command_line: CommandLine, arguments: list[str], named: str
) -> None:
    done = command_line(*QUICK, f"output_root={world}", *arguments)
    assert done.returncode == 2, done.stderr[-2000:]
    [line] = [line for line in done.stderr.splitlines() if line.startswith("run.py: ")]
    assert named in line
