"""README's sequences as they are typed: one command finds what another has made, in any order, or
prints the command that makes it."""

import shlex
import shutil
from pathlib import Path

import polars as pl
import pytest

from tests.conftest import CommandLine

REAL = "model=1.7b"
"""Weights that no test has: a command that finds its records ends at them."""

NO_WEIGHTS = "model.path=Qwen/Qwen3-1.7B: no tokenizer can be read there"
FEW = ["data.tasks=[ICU_Mortality_7day,labevents]"]
ASKED = [
    *("eval.samples_per_task=1", "eval.bootstrap=5", "eval.max_prompt_tokens=256"),
    *("eval.max_new_tokens.think=8", "eval.max_new_tokens.direct=8"),
]
OFFLINE = {"HF_HUB_OFFLINE": "1"}


@pytest.fixture
def world(smoke: Path, tmp_path: Path) -> Path:
    """A folder to type commands in: `hospital` holds MIMIC's tables, `some_model` a model."""
    (tmp_path / "hospital").symlink_to(smoke / "prepare" / "hospital")
    shutil.copytree(smoke / "adapt" / "hf", tmp_path / "some_model")
    return tmp_path


def test_the_sequence_of_the_readme(world: Path, command_line: CommandLine) -> None:
    records = ["data=mimic", "data.root=hospital", *FEW]
    done = command_line("stage=prepare", *records, cwd=world)
    assert done.returncode == 0, done.stderr
    found = "prepare is read from outputs/released/mimic/prepare"
    done = command_line("stage=adapt", *records, REAL, cwd=world, **OFFLINE)
    assert done.returncode == 2 and found in done.stderr and NO_WEIGHTS in done.stderr
    # in a variant of its own name too
    done = command_line("stage=adapt", *records, REAL, "variant=other", cwd=world, **OFFLINE)
    assert done.returncode == 2 and found in done.stderr and NO_WEIGHTS in done.stderr
    done = command_line("stage=eval", *records, "model=some_model", *ASKED, cwd=world, **OFFLINE)
    assert done.returncode == 0 and found in done.stderr, done.stderr
    folder = world / "outputs" / "released" / "mimic" / "some_model" / "eval"
    assert "some_model:direct" in set(pl.read_parquet(folder / "predictions.parquet")["model"])


@pytest.mark.parametrize(
    ("asked", "command"),
    [
        (
            ["stage=eval", REAL, "answer=think", "overwrite=true", "output_root=my outputs"],
            "python run.py stage=prepare model=1.7b 'output_root=my outputs'",
        ),
        (
            ["-m", "stage=adapt", "seed=3,4", REAL],
            "python run.py -m stage=prepare seed=3,4 model=1.7b",
        ),
    ],
)
def test_the_printed_command_makes_what_is_missing(
    asked: list[str], command: str, world: Path, command_line: CommandLine
) -> None:
    asked = [*asked, "data.subjects=10", *FEW]
    done = command_line(*asked, cwd=world, **OFFLINE)
    assert done.returncode == 2
    told = done.stderr.rstrip().rpartition("The command: ")[2]
    assert told == f"{command} data.subjects=10 {shlex.join(FEW)}"
    assert command_line(*shlex.split(told)[2:], cwd=world).returncode == 0
    done = command_line(*asked, cwd=world, **OFFLINE)
    assert done.returncode == 2 and NO_WEIGHTS in done.stderr


def test_a_real_model_reads_the_demos_hospital(world: Path, command_line: CommandLine) -> None:
    # as many patients as the bare command's would take a minute
    few = ["data.subjects=10", *FEW]
    assert command_line("stage=prepare", *few, cwd=world).returncode == 0
    done = command_line("stage=eval", "model=some_model", *few, *ASKED, cwd=world, **OFFLINE)
    assert done.returncode == 0, done.stderr
    assert "prepare is read from outputs/demo/prepare" in done.stderr
