"""Processes that `benchmarks/grpo_speed.py` runs in this project's environment:

- setup: the tokenizer, the model, the prompts; counts the floating-point operations
- fit: ehrr1 as it trains, by its GRPOModule and `fit`, with log, TensorBoard and checkpoints
"""

import argparse
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen3Config

from benchmarks.grpo_speed import (
    COMPLETION_TOKENS,
    LEARNING_RATE,
    ROW_TOKENS,
    SAMPLING,
    Case,
    digest,
)
from benchmarks.settings import composed
from benchmarks.sft_speed_ours import MODEL as SFT_MODEL
from ehrr1.config.schema import Config
from ehrr1.config.training import ModelSettings
from ehrr1.engines.weight_sync import SYNC_TOLERANCE
from ehrr1.files import remove, write_json
from ehrr1.models import flops
from ehrr1.models.memory import TreeShape, anatomy
from ehrr1.prompts.tokenizer import load_tokenizer
from ehrr1.stages.rl import engine_dtype, start_engine
from ehrr1.training.groups import Group
from ehrr1.training.grpo import EngineSpec, GRPOModule, Policy
from ehrr1.training.prompts import PromptData, RLPrompt
from ehrr1.training.rollouts import Clock
from ehrr1.training.sft import builder
from ehrr1.training.trainer import fit

SEED = 0
CPU_PARTS = ("cpu_generate", "cpu_update")
SPECIAL = ("<pad>", "<end>")
MODEL = Qwen3Config(**SFT_MODEL.to_dict() | {"pad_token_id": 0, "eos_token_id": 1})


def setup(given: argparse.Namespace) -> dict[str, Any]:
    """Write what all contenders start from and read; returns counts."""
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_config(MODEL)
    with torch.no_grad():
        # their logits are 0, those of the top 20 of 8,192 words are not: they are never drawn
        model.get_input_embeddings().weight[: len(SPECIAL)] = 0
    model.save_pretrained(given.folder / "model")
    words = {word: number for number, word in enumerate(SPECIAL)}
    words |= {f"w{number}": number for number in range(len(SPECIAL), MODEL.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(words))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=SPECIAL[0], eos_token=SPECIAL[1]
    ).save_pretrained(given.folder / "model")
    generator = torch.Generator().manual_seed(SEED)
    size = (given.steps, given.case.prompt)
    ids = torch.randint(len(SPECIAL), MODEL.vocab_size, size, generator=generator).tolist()
    write_json(given.folder / "prompts.json", ids)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "seen": digest(ids),
    } | operations(given.case, given.checkpointing)


def operations(case: Case, checkpointing: bool) -> dict[str, float]:
    """Floating-point operations of an update of padded rows and of our forest, and their ratios."""
    values = {name: value for name, value in MODEL.to_dict().items() if value is not None}
    model = ModelSettings.of_folder(None)
    model.config = values
    body = anatomy(model)
    row = TreeShape(case.prompt, (COMPLETION_TOKENS,), COMPLETION_TOKENS)
    padded = case.group * flops.training(body, row, checkpointing)
    # the prompt's last token, which predicts, is in every branch (`GRPOModule.forests`)
    branches = (1 + COMPLETION_TOKENS,) * case.group
    shape = TreeShape(case.prompt - 1, branches, case.group * COMPLETION_TOKENS)
    forest = flops.training(body, shape, checkpointing)
    short = forest - flops.last_layer(body, shape, checkpointing)
    return {
        "padded": padded,
        "forest": forest,
        "short": short,
        "padded / forest": padded / forest,
        "with the short last layer": padded / short,
    }


def settings(given: argparse.Namespace) -> Config:
    """The demo's configuration with this benchmark's model and sizes."""
    return composed(
        "trainer=single",
        f"model.path={given.folder / 'model'}",
        "model.tokenizer.train=false",
        f"trainer.activation_checkpointing={given.checkpointing}",
        "rl.optimizer=adamw",
        f"rl.lr={LEARNING_RATE}",
        "rl.prompts_per_step=1",
        f"rl.group_size={given.case.group}",
        f"rl.max_prompt_tokens={given.case.prompt}",
        f"rl.max_completion_tokens={COMPLETION_TOKENS}",
        f"rl.max_batch_tokens={ROW_TOKENS}",
        "rl.mask_truncated=false",
        "~rl.rewards.accuracy",
        "~rl.rewards.format",
        "+rl.rewards.benchmarks.grpo_speed.rewards=1",
        *(f"rl.{name}={value}" for name, value in SAMPLING.items()),
    )


def clocks() -> tuple[float, float]:
    """Seconds of time, and of this process on any core."""
    return time.perf_counter(), time.process_time()


class Written(Sequence[RLPrompt]):
    """The prompts that were written, in place of those of a prepared folder."""

    def __init__(self, path: Path):
        self.ids: list[list[int]] = json.loads(path.read_text(encoding="utf-8"))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: Any) -> Any:
        return RLPrompt(str(index), index, "", "risk", "none", ("yes",), self.ids[index])


class Timed(GRPOModule):
    """Notes when each step, logged and all, is done, what its parts cost all threads, and which
    prompts it saw. Nothing is validated."""

    def __init__(self, *positional: Any, **named: Any):
        super().__init__(*positional, **named)
        self.ends: list[tuple[float, float]] = []
        self.cpu_parts: list[dict[str, float]] = []
        self.asked = 0.0
        self.seen: list[list[int]] = []

    def ask(self, prompts: Sequence[RLPrompt], number: int, clock: Clock) -> list[Group]:
        began = time.process_time()
        groups = super().ask(prompts, number, clock)
        self.asked = time.process_time()
        self.cpu_parts.append({"cpu_generate": self.asked - began})
        self.seen += [group.prompt.tokens for group in groups]
        lengths = {len(one.tokens) for group in groups for one in group.completions}
        assert lengths == {COMPLETION_TOKENS}, lengths
        return groups

    def validate(self, prompts: Sequence[RLPrompt], moment: str) -> None:
        pass

    def on_train_batch_end(self, *_: Any) -> None:
        self.ends.append(clocks())
        self.cpu_parts[-1]["cpu_update"] = self.ends[-1][1] - self.asked


def make_module(cfg: Config, source: Path, data: PromptData, folder: Path) -> Timed:
    """As `stages/rl.py` makes it."""
    tokenizer = load_tokenizer(source)
    start = partial(start_engine, cfg, tokenizer, source, folder)
    return Timed(
        Policy(builder(cfg, source, tokenizer), tokenizer, reference=None),
        cfg.rl,
        data,
        EngineSpec(start, SYNC_TOLERANCE[engine_dtype(cfg)]),
        folder,
        seed=cfg.seed,
        shown=False,
    )


def train(given: argparse.Namespace) -> dict[str, Any]:
    cfg, prompts = settings(given), Written(given.folder / "prompts.json")
    folder = given.folder / "run"
    remove(folder)
    data: Any = PromptData(prompts, prompts, [[number] for number in range(len(prompts))])
    module = make_module(cfg, given.folder / "model", data, folder)
    fit(
        module,
        data,
        folder,
        cfg.trainer,
        description="rl",
        seed=cfg.seed,
        save_seconds=cfg.rl.save_seconds,
    )
    module.close()
    lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [json.loads(line) for line in lines]
    parts = {"generate": ["generate"], "score": ["score"], "update": ["prepare", "update"]}
    found = {
        name: fmean(sum(step[f"timing/{lap}"] for lap in laps) for step in steps[1:])
        for name, laps in parts.items()
    }
    found |= {name: fmean(one[name] for one in module.cpu_parts[1:]) for name in CPU_PARTS}
    (began, cpu_began), (ended, cpu_ended) = module.ends[0], module.ends[-1]
    return found | {
        "step": (ended - began) / (len(steps) - 1),
        "cpu_step": (cpu_ended - cpu_began) / (len(steps) - 1),
        "entropy": steps[0]["entropy"],
        "seen": digest(module.seen),
    }


def main() -> None:
    reader = argparse.ArgumentParser()
    reader.add_argument("what", choices=["setup", "fit"])
    reader.add_argument("folder", type=Path)
    reader.add_argument("output", type=Path)
    reader.add_argument("--case", type=Case.read, required=True)
    reader.add_argument("--steps", type=int, required=True)
    reader.add_argument("--checkpointing", action="store_true")
    given = reader.parse_args()
    given.folder = given.folder.resolve()
    work = {"setup": setup, "fit": train}[given.what]
    write_json(given.output, work(given))


if __name__ == "__main__":
    main()
