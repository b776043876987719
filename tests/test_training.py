"""Supervised training: the step, the schedule, the order of data, resume."""

import json
from collections import Counter
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from ehrr1.config.training import Adapt
from ehrr1.models.loading import load_model
from ehrr1.prompts.dataset import evenly, rank, read_tree, write_trees
from ehrr1.prompts.forest import collate, pack
from ehrr1.prompts.schedule import StepData, forest_steps, plan_evenly, plan_steps
from ehrr1.prompts.trees import PromptBuilder, Question
from ehrr1.tasks.samples import Sample
from ehrr1.training.checkpoints import last_checkpoint
from ehrr1.training.consolidation import learnt_weights
from ehrr1.training.module import make_optimizers, warmup_cosine
from ehrr1.training.sft import SupervisedModule
from ehrr1.training.trainer import fit
from tests.settings import composed
from tests.test_forest import record, trained
from tests.test_grpo import TRAINER
from tests.test_models import model_settings, small


def settings(**changes: Any) -> Adapt:
    return composed("experiment=released", adapt={"lr": 1e-2, **changes}).adapt


def sample(number: int, task: str, context: str, target: str = "yes") -> Sample:
    time = datetime(2180, 7, 24)
    given = {
        "sample_id": f"s{number}",
        "subject_id": number,
        "hadm_id": None,
        "stay_id": None,
        "task": task,
        "split": "train",
        "prediction_time": time,
        "context_id": context,
        "target": (target,),
    }
    names = Sample.__dataclass_fields__
    rest = {name: None for name in names if name not in given}
    return Sample(**given, **rest)


class Records:
    """In place of `Prepared`: every context is the same record."""

    def context(self, sample: Sample) -> list[Any]:
        return record()


def ask(sample: Sample) -> list[Question]:
    return [Question(sample.sample_id, sample.task, False, sample.target[0])]


def tree_data(folder: Path, count: int = 12) -> tuple[Dataset, Any]:
    tokenizer = trained()
    tasks = ["ICU_Mortality_7day", "LengthOfStay_3day"]
    samples = [
        sample(2 * n + k, task, f"c{n}", ["yes", "no"][(n + k) % 2])
        for n in range(count)
        for k, task in enumerate(tasks)
    ]
    prompt_builder = PromptBuilder(tokenizer, 300)
    return write_trees(folder / "trees.arrow", Records(), samples, ask, prompt_builder), tokenizer


def test_samples_of_one_context_are_one_tree_on_disk(tmp_path: Path) -> None:
    trees, tokenizer = tree_data(tmp_path)
    assert len(trees) == 12
    tree = read_tree(trees, 3)
    assert [branch.sample_id for branch in tree.branches] == ["s6", "s7"]
    assert trees["length"][3] == len(tree)
    assert tokenizer.decode(tree.branches[0].completion) == "no<|im_end|>"
    again, _ = tree_data(tmp_path)
    assert again["trunk"][0] == trees["trunk"][0]


def test_tasks_are_mixed_evenly() -> None:
    samples = [sample(n, "poe" if n < 90 else "omr", f"c{n}") for n in range(100)]
    assert Counter(one.task for one in evenly(samples, 12, 0)) == {"poe": 6, "omr": 6}
    plan = plan_evenly([one.task for one in samples], 4, 10, seed=0)
    used = Counter(samples[index].task for step in plan for index in step)
    assert used == {"poe": 20, "omr": 20}
    turns = Counter(index for step in plan for index in step if index >= 90)
    assert set(turns.values()) == {2}
    assert len(plan_evenly(["poe"] * 10, 4, None, 0)) == 3


def test_plan_is_seeded_complete_and_short_first() -> None:
    lengths = [100 - n for n in range(40)]
    plan = plan_steps(lengths, 8, 2, None, seed=0)
    assert plan == plan_steps(lengths, 8, 2, None, seed=0) != plan_steps(lengths, 8, 2, None, 1)
    assert Counter(index for step in plan for index in step) == {n: 2 for n in range(40)}
    short = plan_steps(lengths, 8, 1, None, 0, short_first=True)
    assert max(lengths[i] for i in short[0]) <= min(lengths[i] for i in short[-1])
    assert len(plan_steps(lengths, 8, 5, 7, 0)) == 7


def test_rows_are_as_many_for_every_process_and_lose_no_tree() -> None:
    lengths = [1 + (7 * n) % 50 for n in range(33)]
    for ranks in (1, 2, 3):
        shares = pack(lengths, 120, ranks)
        assert len({len(rows) for rows in shares}) == 1 and len(shares) == ranks
        rows = [row for share in shares for row in share]
        assert sorted(index for row in rows for index in row) == list(range(33))
        assert all(sum(lengths[index] for index in row) <= 120 for row in rows)
    # fewer trees than processes: some rows are empty; a tree that is too long is computed anyway
    assert pack([5], 120, 2) == [[[0]], [[]]]
    assert pack([5, 500, 5], 120, 2) == [[[1]], [[0, 2]]]


def test_processes_read_different_rows_and_the_same_counts(tmp_path: Path) -> None:
    trees, _ = tree_data(tmp_path)
    one, two = (
        forest_steps(trees, [[0, 1, 2]], 150, 0.5, rank, 2).read([0, 1, 2]) for rank in (0, 1)
    )
    [alone] = forest_steps(trees, [[0, 1, 2]], 10_000, 0.5)
    assert (one.weight, one.tokens, one.samples) == (two.weight, two.tokens, two.samples)
    assert (one.weight, one.tokens, one.samples) == (alone.weight, alone.tokens, alone.samples)
    forests = [*one.forests, *two.forests]
    assert len(one.forests) == len(two.forests)
    assert sum(forest.tokens for forest in forests) == alone.tokens
    weight = sum(forest.weights.sum().item() for forest in forests)
    assert weight == pytest.approx(alone.weight)


def test_schedule_warms_up_and_falls_to_nothing() -> None:
    factor = warmup_cosine(100, 0.1)
    values = [factor(step) for step in range(101)]
    assert values[0] == pytest.approx(0.1) and values[9] == 1.0 and max(values) == 1.0
    assert all(a >= b for a, b in pairwise(values[9:]))
    assert values[-1] < 1e-3


def train(
    folder: Path, trees: Dataset, tokenizer: Any, batch: int = 100_000, optimizer: str = "adamw"
) -> SupervisedModule:
    config = settings(max_batch_tokens=batch, optimizer=optimizer)
    plan = plan_steps(trees["length"], 4, 4, None, 0)
    model_config = model_settings("tiny", hidden_size=32, intermediate_size=48, head_dim=8)

    def build(sharding: Any) -> PreTrainedModel:
        return load_model(model_config, None, tokenizer, 1)

    module = SupervisedModule(build, config, len(plan), folder / "evaluation.json")
    data = StepData(forest_steps(trees, plan, batch), forest_steps(trees, [[0, 1], [2]], batch))
    fit(
        module,
        data,
        folder,
        TRAINER,
        description="adapt",
        seed=0,
        save_seconds=0,
        logger=composed().logger,
    )
    module.model = build(None)
    checkpoint, _ = last_checkpoint(folder / "checkpoints")
    assert checkpoint is not None
    module.model.load_state_dict(dict(learnt_weights(checkpoint)))
    return module


def evaluation_of(folder: Path) -> dict[str, float]:
    return json.loads((folder / "evaluation.json").read_text())


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def test_learns_logs_and_does_not_depend_on_batches(tmp_path: Path) -> None:
    trees, tokenizer = tree_data(tmp_path)
    train(tmp_path / "whole", trees, tokenizer)
    lines = lines_of(tmp_path / "whole")
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert lines[-1]["loss"] < lines[0]["loss"] / 2
    assert lines[0]["samples"] == 8 and lines[0]["tokens"] > 800
    found = evaluation_of(tmp_path / "whole")
    assert 0 < found["eval/loss"] < lines[0]["loss"]
    tasks = [found[f"eval/loss/{task}"] for task in ("ICU_Mortality_7day", "LengthOfStay_3day")]
    assert min(tasks) < found["eval/loss"] < max(tasks)
    names = {"seconds", "data_seconds", "tokens_per_second", "samples_per_second", "memory_gib"}
    assert names <= lines[0].keys()
    assert list((tmp_path / "whole" / "tb").glob("events*"))
    train(tmp_path / "parts", trees, tokenizer, batch=300)
    for one, other in zip(lines, lines_of(tmp_path / "parts"), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)
    first = lines_of(tmp_path / "parts")[0]
    assert first["loss"] == pytest.approx(lines[0]["loss"], rel=1e-6)
    assert first["grad_norm"] == pytest.approx(lines[0]["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resume_repeats_the_uninterrupted_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    trees, tokenizer = tree_data(tmp_path)
    whole = train(tmp_path / "whole", trees, tokenizer, optimizer=optimizer)
    step = SupervisedModule.training_step
    calls = 0

    def failing(self: SupervisedModule, forests: Any, index: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyError("the machine stops")
        step(self, forests, index)

    monkeypatch.setattr(SupervisedModule, "training_step", failing)
    with pytest.raises(KeyError):
        train(tmp_path / "broken", trees, tokenizer, optimizer=optimizer)
    checkpoint, done = last_checkpoint(tmp_path / "broken" / "checkpoints")
    assert done == 5 and checkpoint is not None
    (checkpoint.parent / ".step=00000009.ckpt.partial").write_bytes(b"half")
    # a step that was logged but not saved is done again, and logged once
    with (tmp_path / "broken" / "train.jsonl").open("a") as file:
        file.write(json.dumps({"step": 6, "loss": -1}) + "\n")
    train(tmp_path / "broken", trees, tokenizer, optimizer=optimizer)
    lines, reference = lines_of(tmp_path / "broken"), lines_of(tmp_path / "whole")
    assert [line["resumed_from"] for line in lines] == [0] * 5 + [5] * 7
    for name in ("step", "loss", "lr", "grad_norm", "tokens", "samples"):
        assert [line[name] for line in lines] == [line[name] for line in reference], name
    assert evaluation_of(tmp_path / "broken") == evaluation_of(tmp_path / "whole")
    assert [path.name for path in checkpoint.parent.iterdir()] == ["step=00000012.ckpt"]
    # finished already: nothing is trained, the weights are those of the end
    calls = 5
    again = train(tmp_path / "broken", trees, tokenizer, optimizer=optimizer)
    assert all(
        torch.equal(a, b) for a, b in zip(again.parameters(), whole.parameters(), strict=True)
    )


def test_muon_takes_the_matrices_of_the_layers() -> None:
    model, _ = small()
    adamw, muon = make_optimizers(model, settings(optimizer="muon"))
    sizes = [
        sum(p.numel() for group in one.param_groups for p in group["params"])
        for one in (adamw, muon)
    ]
    assert sum(sizes) == sum(p.numel() for p in model.parameters())
    layer = model.model.layers[0]
    matrices = sum(p.numel() for p in layer.parameters() if p.ndim == 2)
    assert sizes[1] == matrices * len(model.model.layers)


def test_a_loss_that_is_not_finite_names_the_samples(tmp_path: Path) -> None:
    trees, _ = tree_data(tmp_path)
    model, _ = small()
    module = SupervisedModule(lambda sharding: model, settings(), 1, tmp_path)
    with pytest.raises(FloatingPointError, match="step 7: the loss is nan for samples s0, s1"):
        module.optimizers = module.lr_schedulers = lambda: torch.optim.SGD(model.parameters())
        module.trainer = SimpleNamespace(strategy=None, global_step=6, world_size=1)
        module.update([collate([read_tree(trees, 0)])], lambda forest: torch.tensor(torch.nan))


def test_rank_depends_on_seed_and_name() -> None:
    assert len({rank(0, "a"), rank(1, "a"), rank(0, "b")}) == 3 and rank(0, "a") == rank(0, "a")
