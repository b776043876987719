"""Samples are tokenised once: by a job without a GPU first, for all runs that learn from them."""

from pathlib import Path

import pytest

from ehrr1.errors import UserError
from ehrr1.stages import execute
from tests.conftest import CommandLine
from tests.settings import composed


def given(smoke: Path, root: Path, *arguments: str) -> list[str]:
    inputs = [f"inputs.{stage}={smoke / stage}" for stage in ("prepare", "chains", "adapt")]
    model = [f"model={smoke / 'adapt' / 'hf'}", "model.config=null"]
    inputs.append(f"inputs.reason={smoke / 'reason'}")
    return ["experiment=smoke", *inputs, *model, f"output_root={root}", *arguments]


def tokenise(smoke: Path, root: Path, stage: str, variant: str, *arguments: str) -> Path:
    """The folder with the samples of a run that has only tokenised them."""
    words = given(smoke, root, f"stage={stage}", f"variant={variant}", *arguments)
    execute(composed(*words, "tokenise_only=true"))
    folder = root / "smoke" / variant / stage
    assert (folder / "config.yaml").exists() and not (folder / "metrics.json").exists()
    return folder / "data"


def test_a_cpu_tokenises_for_the_run_that_trains(
    smoke: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    data = tokenise(smoke, tmp_path, "adapt", "own", "adapt.max_steps=1")
    made = {file.name: file.stat().st_mtime_ns for file in data.iterdir()}
    assert {name for name in made if name.endswith(".arrow")} == {
        "evaluation.arrow", "training.arrow",
    }  # fmt: skip
    words = given(smoke, tmp_path, "stage=adapt", "variant=own", "adapt.max_steps=1")
    done = command_line(*words)
    assert done.returncode == 0 and "resumed" in done.stderr, done.stderr
    assert (data.parent / "metrics.json").exists() and (data.parent / "hf").exists()
    assert made == {file.name: file.stat().st_mtime_ns for file in data.iterdir()}


@pytest.mark.parametrize(
    ("stage", "learns", "asks"),
    [
        ("adapt", ["adapt.lr=1e-5", "trainer=zero3", "trainer.devices=8"], "adapt.max_tokens=300"),
        ("reason", ["reason.epochs=3", "reason.optimizer=muon"], "reason.also_direct=true"),
        ("rl", ["rl.loss=dapo", "rl.group_size=8"], "rl.think=none"),
    ],
)
def test_runs_that_learn_otherwise_share_them(
    stage: str, learns: list[str], asks: str, smoke: Path, tmp_path: Path
) -> None:
    """Also where more GPUs are asked for than this machine has; not what is asked otherwise."""
    first = tokenise(smoke, tmp_path, stage, "first")
    second = tokenise(smoke, tmp_path, stage, "second", *learns)
    files = sorted(file.name for file in first.iterdir())
    assert len(files) == 4 and files == sorted(file.name for file in second.iterdir())
    assert all((second / name).samefile(first / name) for name in files)
    third = tokenise(smoke, tmp_path, stage, "third", asks)
    assert not any((third / name).samefile(first / name) for name in files)
    fourth = tokenise(smoke, tmp_path, stage, "fourth", "seed=1")
    assert not any((fourth / name).samefile(first / name) for name in files)
    damaged = first / files[0]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    fifth = tokenise(smoke, tmp_path, stage, "fifth")
    assert not any((fifth / name).samefile(first / name) for name in files)
    assert (fifth / files[0]).read_bytes() != content


def test_only_one_process_tokenises(
    smoke: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="tokenise_only=true: srun or torchrun started 2"):
        tokenise(smoke, tmp_path, "adapt", "two")
    assert not list(tmp_path.iterdir())
