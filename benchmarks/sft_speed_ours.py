"""Processes that `benchmarks/sft_speed.py` runs in this project's environment:

- samples: the tokenizer, the model, the records with all their questions; for TRL sample by sample
- fit: ehrr1 as it trains, by its LightningModule and `fit`, with log, TensorBoard and checkpoints
- bare: the same forests in a loop of PyTorch and nothing else: the floor
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.optim import AdamW
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase, Qwen3Config

from benchmarks.settings import composed
from ehrr1.config.schema import Config
from ehrr1.files import remove, replacing, write_json
from ehrr1.models.logprobs import token_logprobs
from ehrr1.prompts.corpus import corpus
from ehrr1.prompts.dataset import rank, read_tree, write_trees
from ehrr1.prompts.forest import collate, pack
from ehrr1.prompts.schedule import StepData, forest_steps, plan_steps
from ehrr1.prompts.tokenizer import load_tokenizer, train_tokenizer
from ehrr1.prompts.trees import PromptBuilder
from ehrr1.prompts.wording import OURS
from ehrr1.stages.adapt import ask
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.samples import Prepared
from ehrr1.tasks.selection import LEARNABLE, select
from ehrr1.training.losses import supervised_loss
from ehrr1.training.sft import SupervisedModule, builder
from ehrr1.training.trainer import fit

SEED = 0
LEAST_RECORD, MAX_TOKENS = 1000, 8192
"""Tokens of a record at least, and with a question at most (the default of stage=adapt)."""

ASKED = [
    task
    for task, entry in TASKS.items()
    if entry.kind == "risk" and entry.anchor_table in ("admissions", "icustays")
]
MODEL = Qwen3Config(
    vocab_size=8192,
    hidden_size=256,
    intermediate_size=640,
    num_hidden_layers=6,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=32,
    max_position_embeddings=MAX_TOKENS,
    tie_word_embeddings=True,
)


def write_samples(given: argparse.Namespace) -> dict[str, Any]:
    """Write tokenizer, model and trees, and from the trees the samples that TRL trains on; returns
    their counts."""
    folder: Path = given.folder
    prepared = Prepared(folder / "demo" / "prepare")
    tokenizer = _tokenizer(folder / "tokenizer", prepared)
    torch.manual_seed(SEED)
    model = AutoModelForCausalLM.from_config(MODEL)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    samples = prepared.samples("train", ASKED)
    samples.sort(key=lambda sample: rank(SEED, sample.context_id))
    prompt_builder = PromptBuilder(tokenizer, MAX_TOKENS)
    questions = partial(ask, risk_weight=1.0, style=OURS)
    write_trees(folder / "trees.arrow", prepared, samples, questions, prompt_builder)
    trees = chosen_trees(given)
    rows = [
        {"input_ids": ids, "completion_mask": mask, "step": number}
        for number, step in enumerate(plan(trees, given))
        for index in step
        for ids, mask in flat(trees, index)
    ]
    remove(folder / "samples")
    Dataset.from_list(rows).save_to_disk(folder / "samples")
    lengths = [len(row["input_ids"]) for row in rows]
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": len(tokenizer),
        "trees": len(trees),
        "samples": len(rows),
        "sample_tokens": sum(lengths),
        "tree_tokens": sum(trees["length"]),
        "longest": max(lengths),
    }


def _tokenizer(folder: Path, prepared: Prepared) -> PreTrainedTokenizerBase:
    """Trained on records, questions and answers of all tasks, as stage=adapt does."""
    if not folder.exists():
        some = select(prepared.scan("train", LEARNABLE), 500, SEED)
        texts = corpus(prepared, prepared.as_samples(some), [], seed=SEED)
        with replacing(folder) as temporary:
            train_tokenizer(texts, MODEL.vocab_size).save_pretrained(temporary)
    return load_tokenizer(folder)


def chosen_trees(given: argparse.Namespace) -> Dataset:
    """The first trees, in their random order, whose records are long enough."""
    trees = Dataset.from_file(str(given.folder / "trees.arrow"))
    long = [index for index, n in enumerate(trees["trunk_length"]) if n >= LEAST_RECORD]
    return trees.select(long[: given.trees])


def plan(trees: Dataset, given: argparse.Namespace) -> list[list[int]]:
    return plan_steps(trees["length"], given.trees_per_step, 1, None, SEED)


def flat(trees: Dataset, index: int) -> list[tuple[list[int], list[int]]]:
    """Each branch of a tree behind its trunk: token ids, and whether a token is learnt."""
    tree = read_tree(trees, index)
    return [
        (
            tree.trunk + branch.prompt + branch.completion,
            [0] * (len(tree.trunk) + len(branch.prompt)) + [1] * len(branch.completion),
        )
        for branch in tree.branches
    ]


def settings(given: argparse.Namespace) -> Config:
    """The demo's configuration with this benchmark's model and sizes."""
    return composed(
        f"model.path={given.folder / 'model'}",
        "model.tokenizer.train=false",
        f"trainer.activation_checkpointing={given.checkpointing}",
        "adapt.optimizer=adamw",
        f"adapt.lr={given.lr}",
        f"adapt.trees_per_step={given.trees_per_step}",
        f"adapt.max_batch_tokens={given.row_tokens}",
    )


def clocks() -> tuple[float, float]:
    """Seconds of time, and of this process on any core."""
    return time.perf_counter(), time.process_time()


def since(began: tuple[float, float]) -> dict[str, float]:
    now = clocks()
    return {"seconds": now[0] - began[0], "cpu_seconds": now[1] - began[1]}


class Timed(SupervisedModule):
    """Notes when its first step, logged and all, is done."""

    began: tuple[float, float] | None = None

    def on_train_batch_end(self, *_: Any) -> None:
        self.began = self.began or clocks()


def train_by_fit(given: argparse.Namespace) -> dict[str, Any]:
    cfg, trees = settings(given), chosen_trees(given)
    steps = plan(trees, given)
    folder = given.folder / "run"
    remove(folder)
    data = StepData(forest_steps(trees, steps, cfg.adapt.max_batch_tokens))
    build = builder(cfg, None, load_tokenizer(given.folder / "tokenizer"))
    module = Timed(build, cfg.adapt, len(steps), folder / "evaluation.json")
    fit(
        module,
        data,
        folder,
        cfg.trainer,
        description="adapt",
        seed=cfg.seed,
        save_seconds=cfg.adapt.save_seconds,
    )
    assert module.began is not None
    spent = since(module.began)
    lines = (folder / "train.jsonl").read_text(encoding="utf-8").splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    return {"losses": losses} | spent | counts(trees, steps)


def train_bare(given: argparse.Namespace) -> dict[str, Any]:
    """Forests are collated from trees in memory; forward, backward, clipping, AdamW."""
    cfg, trees = settings(given), chosen_trees(given)
    steps = plan(trees, given)
    read = [[read_tree(trees, index) for index in step] for step in steps]
    model = builder(cfg, None, load_tokenizer(given.folder / "tokenizer"))(None)
    optimizer = AdamW(model.parameters(), lr=given.lr, betas=(0.9, 0.999), fused=True)
    losses: list[float] = []
    began = None
    for step in read:
        weight = sum(len(branch.completion) for tree in step for branch in tree.branches)
        [rows] = pack([len(tree) for tree in step], given.row_tokens)
        losses.append(0.0)
        for row in rows:
            forest = collate([step[index] for index in row])
            logprobs = token_logprobs(model, forest).logprobs
            loss = supervised_loss(logprobs, forest.weights, weight)
            loss.backward()
            losses[-1] += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.adapt.clip)
        optimizer.step()
        optimizer.zero_grad()
        began = began or clocks()
    assert began is not None
    return {"losses": losses} | since(began) | counts(trees, steps)


def counts(trees: Dataset, steps: list[list[int]]) -> dict[str, int]:
    """Samples and computed tokens of all steps but the first."""
    later = trees.select([index for step in steps[1:] for index in step])
    return {"samples": sum(later["branches"]), "tokens": sum(later["length"])}


def main() -> None:
    reader = argparse.ArgumentParser()
    reader.add_argument("what", choices=["samples", "fit", "bare"])
    reader.add_argument("folder", type=Path)
    reader.add_argument("output", type=Path)
    reader.add_argument("--trees", type=int, required=True)
    reader.add_argument("--trees-per-step", type=int, required=True)
    reader.add_argument("--row-tokens", type=int, required=True)
    reader.add_argument("--lr", type=float, required=True)
    reader.add_argument("--checkpointing", action="store_true")
    given = reader.parse_args()
    given.folder = given.folder.resolve()
    work = {"samples": write_samples, "fit": train_by_fit, "bare": train_bare}[given.what]
    write_json(given.output, work(given))


if __name__ == "__main__":
    main()
