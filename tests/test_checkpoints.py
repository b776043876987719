"""When a run saves, what it evaluates meanwhile, which checkpoints stay, and the way back."""

import json
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from rich.console import Console
from transformers import PreTrainedModel

from ehrr1.errors import UserError
from ehrr1.models.loading import add_adapters, load_model
from ehrr1.models.saving import SPACING, Saving
from ehrr1.prompts.schedule import StepData, forest_steps, plan_steps
from ehrr1.stages.consolidate import consolidate_run
from ehrr1.training.checkpoints import PlainFile, best_checkpoints, checkpoints
from ehrr1.training.consolidation import consolidate
from ehrr1.training.sft import SupervisedModule
from ehrr1.training.trainer import fit
from tests.conftest import CommandLine
from tests.settings import changed
from tests.test_grpo import TRAINER
from tests.test_models import model_settings
from tests.test_training import evaluation_of, lines_of, settings, tree_data

SAME = ("step", "loss", "lr", "grad_norm", "tokens", "samples")


def train(folder: Path, data: Path, epochs: int = 4, dropout: float = 0.0, **given: Any) -> None:
    """Three steps an epoch; adapters with `dropout`, two steps of held-out trees."""
    trees, tokenizer = tree_data(data)
    model_config = model_settings("tiny")
    model_config.config.update(hidden_size=32, intermediate_size=48, head_dim=8)
    lora = {"r": 4, "alpha": 8, "dropout": dropout, "targets": ["q_proj", "v_proj", "up_proj"]}

    def build(sharding: Any) -> PreTrainedModel:
        model = load_model(model_config, None, tokenizer, 1)
        add_adapters(model, OmegaConf.create(lora))
        return model.train()

    plan = plan_steps(trees["length"], 4, epochs, None, 0)
    own = {name: given.pop(name) for name in ("optimizer", "schedule") if name in given}
    module = SupervisedModule(build, settings(**own), len(plan), folder / "evaluation.json")
    steps = StepData(forest_steps(trees, plan, 900), forest_steps(trees, [[0, 1], [2]], 900))
    trainer = changed(TRAINER, save_top_k=given.pop("save_top_k", 0))
    chosen = {"save_seconds": 0} | given
    fit(module, steps, folder, trainer, description="adapt", seed=0, **chosen)


def evaluations(folder: Path) -> dict[int, float]:
    lines = (folder / "eval.jsonl").read_text().splitlines()
    return {line["step"]: line["eval/loss"] for line in map(json.loads, lines)}


def kept(folder: Path) -> list[int]:
    return list(checkpoints(folder / "checkpoints"))


def same(folder: Path, other: Path) -> None:
    for name in SAME:
        found, expected = ([line[name] for line in lines_of(one)] for one in (folder, other))
        assert found == expected, name


def test_evaluating_changes_nothing_of_what_is_learnt(tmp_path: Path) -> None:
    """Bit for bit, with dropout, whose draws would come out otherwise."""
    train(tmp_path / "plain", tmp_path, dropout=0.5)
    train(tmp_path / "evaluated", tmp_path, dropout=0.5, eval_every=2)
    train(tmp_path / "without", tmp_path, dropout=0.0)
    same(tmp_path / "evaluated", tmp_path / "plain")
    losses = [lines_of(tmp_path / name)[-1]["loss"] for name in ("plain", "without")]
    assert losses[0] != losses[1], "there was no dropout to disturb"
    found = evaluations(tmp_path / "evaluated")
    assert list(found) == [2, 4, 6, 8, 10, 12] and len(set(found.values())) == 6
    assert evaluations(tmp_path / "plain") == {12: found[12]}
    assert evaluation_of(tmp_path / "plain") == evaluation_of(tmp_path / "evaluated")
    assert evaluation_of(tmp_path / "plain")["eval/loss"] == found[12]


def planned_losses(monkeypatch: pytest.MonkeyPatch, losses: dict[int, float]) -> None:
    """Have evaluations find these losses: a run that gets better and then collapses."""
    end = SupervisedModule.on_validation_end

    def found(self: SupervisedModule) -> None:
        end(self)
        self.evaluated["eval/loss"] = losses[self.trainer.global_step]

    monkeypatch.setattr(SupervisedModule, "on_validation_end", found)


LOSSES = {2: 5.0, 4: 3.0, 6: 2.0, 8: float("nan"), 10: 4.0, 12: 9.0}


def test_the_best_stay_beside_the_last_over_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned_losses(monkeypatch, LOSSES)
    best = {"eval_every": 2, "save_top_k": 2}
    train(tmp_path / "whole", tmp_path, **best, save_seconds=1e6)
    folder = tmp_path / "whole" / "checkpoints"
    assert kept(tmp_path / "whole") == [4, 6, 12]
    assert list(best_checkpoints(folder).items()) == [(6, 2.0), (4, 3.0)]
    listed = json.loads((folder / "best.json").read_text())
    assert listed == [{"step": 6, "eval/loss": 2.0}, {"step": 4, "eval/loss": 3.0}]
    # a failure while step 6 is written: what it was to take the place of is still there
    write = PlainFile.save_checkpoint

    def failing(self: PlainFile, checkpoint: Any, path: Path, storage_options: Any = None) -> None:
        if "00000006" in str(path):
            Path(path).write_bytes(b"half")
            raise KeyError("the machine stops")
        write(self, checkpoint, path)

    with monkeypatch.context() as broken:
        broken.setattr(PlainFile, "save_checkpoint", failing)
        with pytest.raises(KeyError):
            train(tmp_path / "broken", tmp_path, **best)
    assert kept(tmp_path / "broken") == [2, 4, 5]
    assert list(best_checkpoints(tmp_path / "broken" / "checkpoints")) == [4, 2]
    train(tmp_path / "broken", tmp_path, **best)
    assert lines_of(tmp_path / "broken")[-1]["resumed_from"] == 5  # the last, none of the best
    same(tmp_path / "broken", tmp_path / "whole")
    assert kept(tmp_path / "broken") == [4, 6, 12]
    assert list(evaluations(tmp_path / "broken")) == [2, 4, 6, 8, 10, 12]


def test_an_evaluation_that_a_stop_left_out_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path / "whole", tmp_path, eval_every=2, save_top_k=1)
    step = SupervisedModule.validation_step

    def failing(self: SupervisedModule, *given: Any) -> None:
        if self.trainer.global_step == 4:
            raise KeyError("the machine stops")
        step(self, *given)

    with monkeypatch.context() as broken:
        broken.setattr(SupervisedModule, "validation_step", failing)
        with pytest.raises(KeyError):
            train(tmp_path / "broken", tmp_path, eval_every=2, save_top_k=1)
    assert kept(tmp_path / "broken") == [2, 4] and list(evaluations(tmp_path / "broken")) == [2]
    train(tmp_path / "broken", tmp_path, eval_every=2, save_top_k=1)
    same(tmp_path / "broken", tmp_path / "whole")
    assert evaluations(tmp_path / "broken") == evaluations(tmp_path / "whole")


def test_a_save_waits_for_twenty_times_what_the_last_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, saves = PlainFile.save_checkpoint, []

    def slow(self: PlainFile, checkpoint: Any, path: Path, storage_options: Any = None) -> None:
        begun = time.monotonic()
        time.sleep(0.005)
        write(self, checkpoint, path)
        saves.append((begun, time.monotonic()))

    monkeypatch.setattr(PlainFile, "save_checkpoint", slow)
    train(tmp_path / "slow", tmp_path, epochs=30, save_seconds=0.01)
    between = [
        (later[0] - earlier[1]) / (earlier[1] - earlier[0])
        for earlier, later in pairwise(saves[:-1])  # the end is saved anyway
    ]
    assert len(between) >= 1 and min(between) >= SPACING
    assert kept(tmp_path / "slow") == [90]


def test_what_saving_costs() -> None:
    usual = Saving(size=10, seconds=1.0, pause=20.0)
    assert usual.share == pytest.approx(1 / 21) and usual.room == 20
    assert Saving(10, 1.0, 20.0, kept=3, every=10.0).share == pytest.approx(1 / 11)
    often = Saving(10, 1.0, 20.0, kept=3, every=60.0)
    assert often.share == pytest.approx(1 / 21) and often.room == 50


def test_the_way_back_through_the_command_line(
    smoke: Path, tmp_path: Path, command_line: CommandLine
) -> None:
    shared = [
        *("experiment=smoke", "stage=adapt", "adapt.max_steps=8", f"output_root={tmp_path}"),
        *(f"inputs.prepare={smoke / 'prepare'}", "variant=kept"),
    ]
    refused = command_line(*shared, "trainer.save_top_k=2")
    assert refused.returncode == 2 and "trainer.save_top_k=2" in refused.stderr
    assert "adapt.eval_every=STEPS" in refused.stderr and len(refused.stderr.splitlines()) == 1
    # a rate that rises to the end, far beyond what any data forgives
    collapsing = ["adapt.lr=10", "adapt.warmup=1.0"]
    asked = ["trainer.save_top_k=1", "adapt.eval_every=2", "adapt.save_seconds=0"]
    done = command_line(*shared, *collapsing, *asked)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "smoke" / "kept" / "adapt"
    found = evaluations(run)
    best = min(found, key=lambda step: (found[step], step))
    assert found[8] > 1.5 * found[best]
    assert kept(run) == sorted({best, 8})
    # how often it saves and evaluates, and what it keeps, is another question than what it learns
    again = command_line(*shared, *collapsing, "adapt.save_seconds=99")
    assert again.returncode == 0 and "finished already" in again.stderr, again.stderr
    weights, metrics = run / "hf" / "model.safetensors", run / "metrics.json"
    before = weights.read_bytes(), metrics.read_bytes()
    made = command_line("stage=consolidate", f"run={run}", "checkpoint=best")
    assert made.returncode == 0 and f"after {best} steps" in made.stderr, made.stderr
    assert weights.read_bytes() != before[0]
    assert json.loads(metrics.read_text())["hf/step"] == best  # what reads hf/ notices
    chosen = OmegaConf.create({"run": str(run), "checkpoint": "last"})
    consolidate_run(chosen, Console(quiet=True))
    assert (weights.read_bytes(), metrics.read_bytes()) == before


def test_a_checkpoint_is_chosen_or_what_is_there_is_said(tmp_path: Path) -> None:
    train(tmp_path, tmp_path / "data", eval_every=5, save_top_k=1)
    (tmp_path / "base").mkdir()
    with pytest.raises(UserError, match=r"checkpoint=7: .* steps 12 \(eval/loss .*; choose one"):
        consolidate(tmp_path, 7)
    train(tmp_path / "plain", tmp_path / "data")
    (tmp_path / "plain" / "base").mkdir()
    with pytest.raises(UserError, match=r"checkpoint=best: .* steps 12; none was kept.*save_top_k"):
        consolidate(tmp_path / "plain", "best")
