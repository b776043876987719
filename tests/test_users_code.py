"""Callbacks, loggers, optimizers, schedules and losses of a user's own, by their paths."""

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import EarlyStopping
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from ehrr1.errors import UserError
from ehrr1.stages import execute
from ehrr1.training.checkpoints import Checkpoints
from ehrr1.training.sft import SupervisedModule
from ehrr1.training.targets import create, wrong_targets
from tests.conftest import ROOT, CommandLine
from tests.settings import composed
from tests.test_checkpoints import evaluations, kept, same, train
from tests.test_checkpoints import planned_losses as planned
from tests.test_grpo import UREA, run, speaker
from tests.test_training import lines_of

STOP = {
    "_target_": "pytorch_lightning.callbacks.EarlyStopping",
    "monitor": "eval/loss",
    "patience": 2,
}
BETTER_THEN_WORSE = {2: 5.0, 4: 3.0, 6: 4.0, 8: 4.5, 10: 1.0, 12: 1.0}
"""Two evaluations without improvement are over after step 8."""


class Witness(Callback):
    """Writes down what a callback sees after each step and each evaluation."""

    def __init__(self, dirpath: str):
        self.folder = Path(dirpath)

    def note(self, name: str, trainer: Trainer) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        seen = {key: float(value) for key, value in trainer.callback_metrics.items()}
        with (self.folder / f"{name}.jsonl").open("a") as file:
            file.write(json.dumps(seen) + "\n")

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.note("steps", trainer)

    def on_validation_end(self, trainer: Trainer, module: Any) -> None:
        self.note("evaluations", trainer)


class Halt(Callback):
    """Stops a run after its third step."""

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step == 3


WITNESS = {"_target_": "tests.test_users_code.Witness", "dirpath": "seen"}
HALT = {"_target_": "tests.test_users_code.Halt"}


def seen(folder: Path, name: str) -> list[dict[str, float]]:
    text = (folder / "seen" / f"{name}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_callbacks_see_all_metrics_of_steps_and_evaluations(tmp_path: Path) -> None:
    train(tmp_path / "run", tmp_path, eval_every=5, callbacks={"mine": WITNESS})
    lines, steps = lines_of(tmp_path / "run"), seen(tmp_path / "run", "steps")
    assert len(steps) == len(lines) == 12
    for found, line in zip(steps, lines, strict=True):
        for name in ("loss", "grad_norm", "lr", "tokens", "samples"):
            assert found[name] == pytest.approx(line[name], rel=1e-6)
    expected = evaluations(tmp_path / "run")
    found = [one["eval/loss"] for one in seen(tmp_path / "run", "evaluations")]
    assert found == pytest.approx(list(expected.values()), rel=1e-6)
    assert len(expected) == 3 and "eval/loss/ICU_Mortality_7day" in steps[-1]


def test_callbacks_see_rewards(tmp_path: Path) -> None:
    own = {"mine": WITNESS, "stop": STOP}  # of a curriculum: rl has no eval/loss to stop by
    lines = run(tmp_path, 2, speaker(), rewards={UREA: 1.0}, callbacks=own)
    for found, line in zip(seen(tmp_path, "steps"), lines, strict=True):
        for name in ("reward", f"rewards/{UREA}/mean", "entropy", "loss"):
            assert found[name] == pytest.approx(line[name], rel=1e-6)


def test_early_stopping_ends_a_run_which_is_then_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(monkeypatch, BETTER_THEN_WORSE)
    given: dict[str, Any] = {"eval_every": 2, "callbacks": {"stop": STOP}}
    train(tmp_path / "run", tmp_path, **given, save_top_k=1)
    assert [line["step"] for line in lines_of(tmp_path / "run")] == list(range(1, 9))
    assert list(evaluations(tmp_path / "run")) == [2, 4, 6, 8]
    assert kept(tmp_path / "run") == [4, 8]
    # the same command again does not train on
    train(tmp_path / "run", tmp_path, **given)
    assert len(lines_of(tmp_path / "run")) == 8 and kept(tmp_path / "run") == [4, 8]


@pytest.mark.parametrize("moment", ["before the evaluation is passed on", "after it"])
def test_a_resumed_run_stops_where_the_uninterrupted_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """The checkpoint of step 6 is older than its evaluation, which is then made up for, or only
    passed on again: the first of two without improvement must not be forgotten."""
    planned(monkeypatch, BETTER_THEN_WORSE)
    given: dict[str, Any] = {"eval_every": 2, "callbacks": {"stop": STOP}}
    owner: Any = SupervisedModule if moment.startswith("before") else Checkpoints
    name = "on_validation_start" if moment.startswith("before") else "keep"
    real, calls = getattr(owner, name), 0

    def failing(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyError("the machine stops")
        return real(*arguments)

    with monkeypatch.context() as broken, pytest.raises(KeyError):
        broken.setattr(owner, name, failing)
        train(tmp_path / "run", tmp_path, **given)
    assert kept(tmp_path / "run") == [6]
    train(tmp_path / "run", tmp_path, **given)
    lines = lines_of(tmp_path / "run")
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert lines[-1]["resumed_from"] == 6
    assert list(evaluations(tmp_path / "run")) == [2, 4, 6, 8]


def test_a_run_that_is_stopped_between_evaluations_is_evaluated_at_its_end(tmp_path: Path) -> None:
    for _ in range(2):  # the same command again does not train on
        train(tmp_path / "run", tmp_path, callbacks={"mine": HALT})
        assert len(lines_of(tmp_path / "run")) == 3 and kept(tmp_path / "run") == [3]
        assert list(evaluations(tmp_path / "run")) == [3]


def test_lightnings_own_checkpoints_beside_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned(monkeypatch, BETTER_THEN_WORSE)
    saved = {
        "_target_": "pytorch_lightning.callbacks.ModelCheckpoint",
        "dirpath": "best",
        "filename": "at-{step}",
        "monitor": "eval/loss",
    }
    train(tmp_path / "run", tmp_path, eval_every=2, callbacks={"mine": saved})
    train(tmp_path / "plain", tmp_path, eval_every=2)
    same(tmp_path / "run", tmp_path / "plain")
    assert [path.name for path in (tmp_path / "run" / "best").iterdir()] == ["at-step=10.ckpt"]
    assert kept(tmp_path / "run") == [12]


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {
        name: [(one.step, one.value) for one in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_several_loggers_get_each_point_once(tmp_path: Path) -> None:
    loggers = composed("logger=[tensorboard,csv]").logger
    train(tmp_path, tmp_path / "data", eval_every=4, logger=loggers)
    lines, found = lines_of(tmp_path), curves(tmp_path / "tb")
    assert [step for step, _ in found["train/loss"]] == list(range(1, 13))
    values = [value for _, value in found["train/loss"]]
    assert values == pytest.approx([line["loss"] for line in lines], rel=1e-6)
    assert [step for step, _ in found["eval/loss"]] == [4, 8, 12]
    assert all(name.startswith(("train/", "eval/")) for name in found)
    table = pl.read_csv(tmp_path / "csv" / "version_0" / "metrics.csv")
    points = table.filter(pl.col("train/loss").is_not_null())
    assert points["step"].to_list() == list(range(1, 13))
    assert points["train/loss"].to_list() == pytest.approx([line["loss"] for line in lines])
    assert table["eval/loss"].drop_nulls().len() == 3


def test_an_optimizer_by_its_class_steps_as_by_its_name(tmp_path: Path) -> None:
    own = {"_target_": "torch.optim.AdamW", "betas": [0.9, 0.999], "fused": True}
    train(tmp_path / "named", tmp_path)
    train(tmp_path / "class", tmp_path, optimizer=own | {"_partial_": True})
    train(tmp_path / "other", tmp_path, optimizer={"_target_": "torch.optim.SGD"})
    same(tmp_path / "class", tmp_path / "named")
    losses = [lines_of(tmp_path / name)[-1]["loss"] for name in ("named", "other")]
    assert losses[0] != losses[1]


def straight(steps: int, warmup: float) -> Any:
    """A learning rate that falls to 0 in a straight line."""
    return lambda step: 1 - step / steps


def test_a_schedule_of_ones_own(tmp_path: Path) -> None:
    train(tmp_path, tmp_path / "data", schedule="tests.test_users_code.straight")
    rates = [line["lr"] for line in lines_of(tmp_path)]
    assert rates == pytest.approx([1e-2 * (1 - step / 12) for step in range(12)])


def plain_gain(ratio: Tensor, tokens: Any, settings: Any) -> Tensor:
    """The policy gradient without a bound, as GRPO's where nothing is clipped."""
    return ratio * tokens.advantages


def test_a_policy_loss_of_ones_own_is_averaged_as_dapo(tmp_path: Path) -> None:
    given: dict[str, Any] = {"rewards": {UREA: 1.0}, "lr": 1e-2}
    own = run(tmp_path / "own", 3, speaker(), loss="tests.test_users_code.plain_gain", **given)
    dapo = run(tmp_path / "dapo", 3, speaker(), loss="dapo", **given)
    for name in ("loss", "grad_norm", "reward"):
        assert [line[name] for line in own] == [line[name] for line in dapo]


REFUSED = {
    "callbacks.x: EarlyStopping: missing a required argument: 'monitor'": [
        "+callbacks.x={_target_: pytorch_lightning.callbacks.EarlyStopping}"
    ],
    "callbacks.x._target_=nowhere.Stop: nowhere cannot be imported": [
        "+callbacks.x={_target_: nowhere.Stop}"
    ],
    "callbacks.x._target_=os.system: it is no pytorch_lightning.callbacks.callback.Callback": [
        "+callbacks.x={_target_: os.system, command: ls}"
    ],
    "logger.x._target_=pathlib.Path: it is no": ["+logger.x={_target_: pathlib.Path}"],
    "logger.csv: CSVLogger: got an unexpected keyword argument 'colour'": [
        "logger=csv",
        "+logger.csv.colour=red",
    ],
    "adapt.optimizer.lr=0.1: set adapt.lr instead": [
        "adapt.optimizer={_target_: torch.optim.SGD, lr: 0.1}"
    ],
    "adapt.schedule=math.ramp: math has no function ramp": ["adapt.schedule=math.ramp"],
    "loss.function=my_losses.focal: my_losses cannot be imported": [
        "loss.function=my_losses.focal"
    ],
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_used_is_named(words: str) -> None:
    [problem] = wrong_targets(composed(*REFUSED[words]), "adapt")
    assert problem.startswith(words)


def test_a_curriculum_names_what_cannot_be_used_before_its_first_stage(tmp_path: Path) -> None:
    words = [
        "stage=curriculum",
        f"output_root={tmp_path}",
        "+callbacks.mine._target_=nowhere.Thing",
    ]
    with pytest.raises(UserError, match=r"^callbacks\.mine\._target_=nowhere\.Thing: nowhere"):
        execute(composed("experiment=smoke", *words))
    assert not list(tmp_path.iterdir())
    words[-1:] = ["trainer=ddp", "trainer.devices=3", "reason.trees_per_step=8"]
    refused = r"^adapt.*; reason\.trees_per_step=8: 3 processes .* 3; rl\.prompts_per_step=4: 3 pro"
    with pytest.raises(UserError, match=refused):
        execute(composed("experiment=smoke", *words))
    assert not list(tmp_path.iterdir())


def test_arguments_create_no_objects() -> None:
    """A mapping with `_target_` among the arguments stays a mapping."""
    target = {"_target_": "tests.test_users_code.Witness", "dirpath": {"_target_": "os.getcwd"}}
    with pytest.raises(UserError, match=r"^callbacks\.x: "):
        create("callbacks.x", target, Callback)


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_a_missing_package_comes_with_its_command() -> None:
    [problem] = wrong_targets(composed("logger=[tensorboard,wandb]"), "adapt")
    assert problem.startswith("logger.wandb: ") and problem.endswith("pip install wandb")


def test_the_example_of_the_docs_runs_as_it_stands(
    smoke: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    """A callback, a loss and two loggers in an experiment; the callback ends the run."""
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```(?:python|yaml)\n(.*?)```", text, re.DOTALL)
    files = {name: b for b in blocks for name in re.findall(r"^# (\w\S+\.\w+)$", b, re.MULTILINE)}
    assert set(files) == {"my_training.py", "experiment/my_experiment.yaml"}
    (tmp_path / "experiment").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    [command] = re.findall(r"^python run.py (--config-dir .*)$", text, re.MULTILINE)
    places = [f"inputs.prepare={smoke / 'prepare'}", f"output_root={tmp_path}"]
    done = command_line(*command.split(), *places, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "a callback stopped it after 6 steps" in done.stderr
    folder = tmp_path / "my_experiment" / "adapt"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["steps"] == len(lines_of(folder)) == 6
    assert list(evaluations(folder)) == [3, 6]
    assert metrics["eval/loss"] == evaluations(folder)[6] <= 6.65
    assert lines_of(folder)[0]["loss"] < lines_of(smoke / "adapt")[0]["loss"]
    assert (folder / "hf" / "model.safetensors").exists()
    assert len(pl.read_csv(folder / "csv" / "version_0" / "metrics.csv")) >= 6
    # finished: the same command says so, and another callback is another run
    again = command_line(*command.split(), *places, cwd=tmp_path)
    assert again.returncode == 0 and "finished already" in again.stderr
    other = command_line(*command.split(), *places, "callbacks.stop.loss=1.0", cwd=tmp_path)
    assert other.returncode == 2 and "callbacks.stop.loss: 6.65 there, 1.0 now" in other.stderr


def test_early_stopping_has_lightnings_meaning() -> None:
    """Check what the tests above rest on: patience counts evaluations without improvement."""
    stop = EarlyStopping("eval/loss", patience=2)
    decided = [stop._evaluate_stopping_criteria(torch.tensor(v))[0] for v in (5.0, 3.0, 4.0, 4.5)]
    assert decided == [False, False, False, True]
