"""stage=rl: group relative policy optimisation from the weights of `reason`.

Decision tasks think, risk tasks answer at once, as released. The greedy completions to held-out
validation prompts are scored before and after on the same prompts.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from omegaconf import DictConfig

from ehrr1 import parallel
from ehrr1.errors import UserError
from ehrr1.evaluation.bootstrap import Resamples, estimate
from ehrr1.files import read_json, write_json
from ehrr1.models.loading import export, load_model
from ehrr1.models.sizes import check_memory
from ehrr1.prompts.dataset import evenly, write_trees
from ehrr1.prompts.steps import StepData, Steps, plan_evenly
from ehrr1.prompts.tokenizer import load_tokenizer
from ehrr1.prompts.trees import Question, TreeMaker
from ehrr1.runs import Run
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.tasks.selection import LEARNABLE, select
from ehrr1.training.fitting import fit, load_last
from ehrr1.training.grpo import GRPOModule, Prompt, mean
from ehrr1.training.rewards import REWARDS
from ehrr1.training.strategies import is_zero


def run(cfg: DictConfig, run: Run) -> dict[str, float | int]:
    check(cfg, run.inputs)
    start = run.input("reason") / "hf"
    prepared = Prepared(run.input("prepare"))
    tokenizer = load_tokenizer(start)
    maker = TreeMaker(tokenizer, cfg.rl.max_prompt_tokens)
    training = make_prompts(prepared, "train", maker, cfg, run.folder, cfg.rl.samples_per_task)
    per_task = 2 * cfg.rl.validation_prompts
    validation = make_prompts(prepared, "validation", maker, cfg, run.folder, per_task)
    validation = evenly(validation, cfg.rl.validation_prompts, cfg.seed)
    if not training or not validation:
        raise UserError(
            f"data.tasks={cfg.data.tasks}: no training or no validation prompts in "
            f"{prepared.folder}; prepare more patients or tasks"
        )
    model = load_model(cfg.model, start, tokenizer)
    plan = plan_evenly(
        [prompt.task for prompt in training], cfg.rl.prompts_per_step, cfg.rl.steps, cfg.seed
    )
    module = GRPOModule(model, tokenizer, cfg.rl, len(plan), cfg.rollout.batch_size, cfg.seed)

    before = validate(module, validation, "validation before", run.folder / "before.json")
    data = StepData(Steps(plan, lambda indices: [training[index] for index in indices]))
    fit(
        module,
        data,
        run.folder,
        cfg.trainer,
        description="rl",
        seed=cfg.seed,
        save_seconds=cfg.rl.save_seconds,
    )
    load_last(module, run.folder)  # those that `fit` made, or that an earlier process had saved
    after = validate(module, validation, "validation after", run.folder / "after.json")
    export(model, tokenizer, run.folder / "hf")
    return compare(validation, before, after, cfg) | {
        "steps": len(plan),
        "prompts": len(training),
        "validation/prompts": len(validation),
    }


def check(cfg: DictConfig, inputs: dict[str, Path]) -> None:
    """All settings of this stage that cannot work, at once."""
    problems = []
    if is_zero(cfg.trainer) or parallel.wanted(cfg.trainer) > 1:
        problems.append(
            f"trainer.strategy={cfg.trainer.strategy}, trainer.devices={cfg.trainer.devices}: "
            "stage=rl runs in one process; choose trainer=single"
        )
    if cfg.rl.loss != "grpo":
        problems.append(f"rl.loss={cfg.rl.loss}: there is only grpo")
    if cfg.rl.group_size < 2:
        problems.append(f"rl.group_size={cfg.rl.group_size}: a group needs at least 2 completions")
    problems += [
        f"rl.rewards.{name}: no such reward; choose among {', '.join(REWARDS)}"
        for name in cfg.rl.rewards
        if name not in REWARDS
    ]
    if problems:
        raise UserError("; ".join(problems))
    check_memory(cfg.model, cfg.trainer.accelerator)


def make_prompts(
    prepared: Prepared,
    split: str,
    maker: TreeMaker,
    cfg: DictConfig,
    folder: Path,
    per_task: int | None,
) -> list[Prompt]:
    """Prompts of a split, risk labels balanced: a policy that always says "no" gains nothing."""
    chosen = select(prepared.scan(split, LEARNABLE), per_task, cfg.seed, balance=True)
    samples = prepared.as_samples(chosen)
    if split == "validation":
        samples = evenly(samples, 2 * cfg.rl.validation_prompts, cfg.seed)
    trees = write_trees(folder / "data" / f"{split}.arrow", prepared, samples, ask, maker)
    by_id = {sample.sample_id: sample for sample in samples}
    prompts = []
    for tree in trees:
        for sample_id, question in zip(tree["sample_ids"], tree["prompts"], strict=True):
            sample = by_id[sample_id]
            kind = TASKS[sample.task].kind
            prompts.append(
                Prompt(
                    sample_id,
                    sample.subject_id,
                    sample.task,
                    kind,
                    kind == "decision",
                    sample.target,
                    tree["trunk"] + question,
                )
            )
    return prompts


def ask(sample: Sample) -> list[Question]:
    """Decision tasks with thinking, risk tasks without; the answer is the model's."""
    return [Question(sample.sample_id, sample.task, TASKS[sample.task].kind == "decision")]


def validate(
    module: GRPOModule, prompts: Sequence[Prompt], description: str, path: Path
) -> dict[str, list[float | None]]:
    """Each reward of the greedy completions, by prompt; kept in `path` for a run that resumes."""
    if not path.exists():
        scores = module.greedy(prompts, description)
        write_json(path, {"total": scores.total, **scores.parts})
    return read_json(path)


def compare(
    prompts: Sequence[Prompt],
    before: dict[str, list[float | None]],
    after: dict[str, list[float | None]],
    cfg: DictConfig,
) -> dict[str, float | int]:
    """validation/reward[/<name>]/before|after, and the paired interval of the accuracy's gain."""
    metrics: dict[str, float | int] = {}
    for moment, values in (("before", before), ("after", after)):
        for name, rewards in values.items():
            prefix = "validation/reward" if name == "total" else f"validation/reward/{name}"
            metrics[f"{prefix}/{moment}"] = mean(rewards)
    if "accuracy" not in before:
        return metrics
    gains = np.array(after["accuracy"], float) - np.array(before["accuracy"], float)
    subjects = np.array([prompt.subject_id for prompt in prompts])
    weights = Resamples.draw(subjects, cfg.rl.bootstrap, cfg.seed).weights(subjects)
    gain = estimate(weights @ gains / weights.sum(axis=1))
    metrics["validation/reward/accuracy/gain"] = gain.value
    metrics["validation/reward/accuracy/gain/low"] = gain.low
    metrics["validation/reward/accuracy/gain/high"] = gain.high
    return metrics
