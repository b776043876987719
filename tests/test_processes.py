"""Training in one process and in several, by every strategy, through the command line: one
trajectory, one resume, one kind of folder."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from ehrr1 import parallel
from ehrr1.errors import UserError
from ehrr1.models.memory import STAGES
from ehrr1.models.saving import checkpoint_bytes
from ehrr1.training.checkpoints import check_processes, last_checkpoint
from ehrr1.training.consolidation import learnt_weights
from tests.conftest import ROOT, CommandLine, StartCommand

TRAJECTORY = Path(__file__).parent / "trajectory.json"
"""The losses and gradient norms of `experiment=smoke stage=adapt adapt.max_steps=12`, seed 0, one
process, as committed. `python -m tests.test_processes PREPARED` prints it anew."""

LOSS, NORM = 1e-5, 1e-4
"""How far, relatively, another strategy or machine may be off: sums in another order."""

STEPS = 12
ARGUMENTS = ("experiment=smoke", f"adapt.max_steps={STEPS}")
SEVERAL_ROWS = "adapt.max_batch_tokens=900"  # in place of one or two a step
EXACT = "trainer.precision=32-true"
EVALUATED = ("adapt.eval_every=5", "trainer.save_top_k=1")  # which must change nothing


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def train(smoke: Path, tmp_path_factory: pytest.TempPathFactory, command_line: CommandLine) -> Any:
    root = tmp_path_factory.mktemp("processes")

    @cache
    def run(name: str, *arguments: str) -> Path:
        done = command_line(*given(smoke, root, name), *arguments)
        assert done.returncode == 0, done.stderr[-3000:]
        return root / "smoke" / name / "adapt"

    return run


def given(smoke: Path, root: Path, name: str) -> list[str]:
    inputs = [f"inputs.prepare={smoke / 'prepare'}", f"output_root={root}", f"variant={name}"]
    return [*ARGUMENTS, "stage=adapt", *inputs]


def assert_same_trajectory(folder: Path) -> None:
    for found, expected in zip(lines_of(folder), json.loads(TRAJECTORY.read_text()), strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=LOSS), found["step"]
        assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=NORM), found["step"]
        for name in ("step", "tokens", "samples"):
            assert found[name] == expected[name]


STRATEGIES = {
    "single": [],
    "several_rows": [SEVERAL_ROWS],
    "unpacked": ["adapt.max_batch_tokens=1"],  # every tree is a row of its own
    "checkpointed": ["trainer.activation_checkpointing=true"],
    "dense": ["model.attention=dense"],
    "ddp": ["trainer=ddp", "trainer.devices=2", EXACT, SEVERAL_ROWS, *EVALUATED],
    "zero1": ["trainer=zero1", "trainer.devices=2", EXACT, SEVERAL_ROWS, *EVALUATED],
    "zero2": ["trainer=zero2", "trainer.devices=2", EXACT],
    "zero3": ["trainer=zero3", "trainer.devices=2", EXACT, SEVERAL_ROWS, *EVALUATED],
    "zero3_offload": ["trainer=zero3_offload", "trainer.devices=1", EXACT, SEVERAL_ROWS],
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_has_the_committed_trajectory(name: str, train: Any) -> None:
    folder = train(name, *STRATEGIES[name])
    assert_same_trajectory(folder)
    found = json.loads((folder / "metrics.json").read_text())
    assert found["eval/loss"] > 0 and found["train/tokens_per_second"] > 0
    assert_saved_as_planned(folder, found["parameters"])
    if EVALUATED[0] in STRATEGIES[name]:
        lines = [json.loads(line) for line in (folder / "eval.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines] == [5, 10, STEPS]
        assert lines[-1]["eval/loss"] == found["eval/loss"]
        assert len(list((folder / "checkpoints").glob("step=*.ckpt"))) <= 2
    # hf/ of every strategy holds the weights that the plain run ends with
    weights = load_file(folder / "hf" / "model.safetensors")
    expected = load_file(train("single") / "hf" / "model.safetensors")
    assert weights.keys() == expected.keys()
    for key, value in weights.items():
        assert torch.allclose(value, expected[key], atol=2e-5), key


def assert_saved_as_planned(folder: Path, parameters: int) -> None:
    """A checkpoint is as large as stage=plan would say, but for names and padding."""
    [*_, last] = sorted((folder / "checkpoints").glob("step=*.ckpt"))
    size = sum(one.stat().st_size for one in (last, *last.rglob("*")) if one.is_file())
    stage = STAGES[OmegaConf.load(folder / "config.yaml").trainer.strategy]
    assert size == pytest.approx(checkpoint_bytes(stage, 4, parameters), rel=0.1)


def start(arguments: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(ROOT / "run.py"), *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_steps(folder: Path, count: int) -> None:
    log, deadline = folder / "train.jsonl", time.monotonic() + 300
    while not (log.exists() and len(log.read_text().splitlines()) >= count):
        assert time.monotonic() < deadline, "the run does not start"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("strategy", "told"),
    # one process and SIGUSR1: test_slurm_sweeps.py, at a job's time limit
    [("zero3", signal.SIGTERM), ("zero2", signal.SIGKILL), ("ddp", signal.SIGINT)],
)
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
    strategy: str,
    told: signal.Signals,
    smoke: Path,
    tmp_path: Path,
    train: Any,
    command_line: CommandLine,
    start_command: StartCommand,
) -> None:
    """SIGTERM, SIGUSR1 and SIGINT save first; SIGKILL of the starting process ends the others too.
    The losses that follow are the uninterrupted run's, bit for bit."""
    broken = [*given(smoke, tmp_path, "broken"), *STRATEGIES[strategy], "adapt.save_seconds=0.05"]
    folder = tmp_path / "smoke" / "broken" / "adapt"
    process = start(broken) if told == signal.SIGKILL else start_command(*broken)
    wait_for_steps(folder, 4)
    process.send_signal(told)
    _, said = process.communicate(timeout=120)
    done = len(lines_of(folder))
    assert 4 <= done < STEPS
    if told == signal.SIGKILL:
        assert process.returncode == -told
    else:
        assert process.returncode == 128 + told
        assert f"stopped by {told.name} after {done} steps, all saved" in said
        assert (folder / "checkpoints" / f"step={done:08d}.ckpt").exists()
        # hf/ of a stopped run, by a command
        made = command_line("stage=consolidate", f"run={folder}")
        assert made.returncode == 0 and f"after {done} steps" in made.stderr, made.stderr
        assert (folder / "hf" / "model.safetensors").exists()
    deadline = time.monotonic() + 60
    again = command_line(*broken)
    while "in use by another process" in again.stderr and time.monotonic() < deadline:
        again = command_line(*broken)  # the killed group is not gone yet
    assert again.returncode == 0, again.stderr[-3000:]
    whole = train(strategy, *STRATEGIES[strategy])
    found, expected = lines_of(folder), lines_of(whole)
    for name in ("step", "loss", "lr", "grad_norm", "tokens", "samples"):
        assert [line[name] for line in found] == [line[name] for line in expected], name
    assert 0 < found[-1]["resumed_from"] <= done
    losses = [
        json.loads((path / "metrics.json").read_text())["eval/loss"] for path in (folder, whole)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", ["zero1", "zero2", "zero3"])
def test_another_number_of_processes_is_told_who_has_divided_a_checkpoint(
    name: str, train: Any
) -> None:
    """Here it is one, as `trainer.devices=auto` on a machine with fewer GPUs."""
    checkpoint, _ = last_checkpoint(train(name, *STRATEGIES[name]) / "checkpoints")
    with pytest.raises(UserError, match=r"1 processes cannot resume .*ckpt, .* among 2; start 2"):
        check_processes(checkpoint)
    for whole in ("single", "ddp"):
        check_processes(last_checkpoint(train(whole, *STRATEGIES[whole]) / "checkpoints")[0])


def test_torchrun_starts_the_same_run(smoke: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    arguments = [*given(smoke, tmp_path, "torchrun"), "trainer=zero2", "trainer.devices=2", EXACT]
    done = subprocess.run(
        [*command, str(ROOT / "run.py"), *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_trajectory(tmp_path / "smoke" / "torchrun" / "adapt")


IN_A_GROUP = """
import torch.distributed
from ehrr1 import parallel
parallel.join(gpu=False)
other = torch.distributed.new_group([0, 1])  # as DeepSpeed makes
for step in range(20):
    assert parallel.totals([1.0]) == [2.0]
    torch.distributed.barrier(other)
assert parallel.gather(parallel.rank()) == [0, 1]
parallel.part()
"""


def test_processes_leave_their_group_before_they_exit() -> None:
    """Without `part`, a quarter of such processes are aborted at exit by gloo's threads."""
    codes = [parallel.start([sys.executable, "-c", IN_A_GROUP], 2) for _ in range(4)]
    assert codes == [0] * 4


WAITING = """
import os, sys, time
from datetime import timedelta
import torch, torch.distributed
from ehrr1 import parallel
parallel.EXCHANGE = timedelta(seconds=1)
parallel.join(gpu=False)
assert parallel.from_first(lambda: time.sleep(2) or 7) == 7
assert parallel.in_turn(lambda: time.sleep(2 * (parallel.rank() == 0)) or 8) == 8
other = torch.distributed.new_group([0, 1])  # as DeepSpeed makes
if parallel.rank() == 0:
    time.sleep(3)
try:
    torch.distributed.all_reduce(torch.ones(1), group=other)
except RuntimeError as error:
    os._exit(0 if parallel.rank() == 0 or "imed out" in str(error) else 4)
os._exit(5 * parallel.rank())
"""


def test_processes_wait_for_the_one_that_works_but_not_for_lost_exchanges() -> None:
    """A timeout of one second stands for `EXCHANGE`."""
    assert parallel.start([sys.executable, "-c", WAITING], 2) == 0


@pytest.fixture(scope="module")
def srun(slurm: dict[str, str]) -> list[str]:
    """The command that starts two tasks on a real SLURM of this machine."""
    return ["env", *(f"{k}={v}" for k, v in slurm.items()), "srun", "--immediate=30", "--ntasks=2"]


def test_two_tasks_with_a_device_each_are_refused(
    srun: list[str], smoke: Path, tmp_path: Path
) -> None:
    """They would train twice into one folder, silently."""
    command = [*srun, sys.executable, str(ROOT / "run.py"), *given(smoke, tmp_path, "twice")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "trainer.devices=1" in done.stderr and "started 2" in done.stderr
    assert not (tmp_path / "smoke" / "twice" / "adapt").exists()


def test_all_that_cannot_work_is_said_at_once(
    smoke: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    done = command_line(
        *given(smoke, tmp_path, "wrong"), "trainer=zero2", "trainer.devices=64",
        "adapt.trees_per_step=3", "adapt.optimizer=muon", "adapt.max_tokens=9000",
        "model.lora={r: 4, alpha: 8, dropout: 0.0, targets: [q_proj]}",
    )  # fmt: skip
    assert done.returncode == 2
    [complaint] = [line for line in done.stderr.splitlines() if line.startswith("run.py: ")]
    for words in (
        "trainer.devices=64: this machine has",
        "adapt.trees_per_step=3: 64 processes",
        "adapt.optimizer=muon with trainer.strategy=zero2",
        "model.lora with model.path=null",
        "adapt.max_tokens=9000: model=tiny reads at most 8192",
    ):
        assert words in complaint
    assert not (tmp_path / "smoke" / "wrong" / "adapt").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system can only be mounted as root")
@pytest.mark.parametrize("strategy", ["single", "zero2"])
def test_a_full_disk_leaves_the_last_good_checkpoint(
    strategy: str, smoke: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    size = {"single": "2200k", "zero2": "3m"}[strategy]
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        processes = "1" if strategy == "single" else "2"
        done = command_line(
            *given(smoke, disk, "full"), "adapt.save_seconds=0",
            f"trainer={strategy}", f"trainer.devices={processes}", EXACT,
        )  # fmt: skip
        assert done.returncode == 2, done.stderr[-3000:]
        assert "No space left on device" in done.stderr and "output_root" in done.stderr
        kept = list((disk / "smoke" / "full" / "adapt" / "checkpoints").glob("step=*.ckpt"))
        assert len(kept) == 1
        # one by one: the file is mapped, and a disk in use cannot be unmounted
        finite = [bool(value.isfinite().all()) for _, value in learnt_weights(kept[0])]
        assert len(finite) > 20 and all(finite)
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_consolidate_says_what_is_missing(tmp_path: Path, command_line: CommandLine) -> None:
    for arguments, words in (
        (["stage=consolidate"], "run=DIR"),
        (["stage=consolidate", "run=nowhere"], "run=nowhere: no such folder"),
        (["stage=consolidate", f"run={tmp_path}"], "no checkpoint"),
    ):
        done = command_line(*arguments)
        assert done.returncode == 2 and words in done.stderr


def main() -> None:
    """Print the trajectory of a run on the smoke experiment's prepared folder."""
    import tempfile

    with tempfile.TemporaryDirectory() as root:
        prepared = Path(sys.argv[1])
        command = [sys.executable, str(ROOT / "run.py")]
        subprocess.run([*command, *given(prepared.parent, Path(root), "now")], check=True, cwd=ROOT)
        lines = lines_of(Path(root) / "smoke" / "now" / "adapt")
    names = ("step", "loss", "grad_norm", "tokens", "samples")
    rows = [json.dumps({name: line[name] for name in names}) for line in lines]
    print("[\n" + ",\n".join(rows) + "\n]")


if __name__ == "__main__":
    main()
