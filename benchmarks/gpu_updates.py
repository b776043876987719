"""The part `update` of `benchmarks/gpu.py`: one optimizer step, its speed and its memory."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.gpu_parts import DEVICE, Sizes, end_tokenizer
from benchmarks.prefix_sharing import Loss, Way, alone, forest, grouped, policy, supervised, update
from ehrr1.models import flops
from ehrr1.models.attention import choose
from ehrr1.models.memory import Anatomy, Load, TreeShape, activations, anatomy, memory
from ehrr1.prompts.trees import Tree

GIB = 2**30
STEPS = 3
STATES = 8
"""Bytes of a parameter: weights, gradient and two moments in bf16."""

FIXED = ("weights", "gradients", "optimizer", "buffers", "reserved", "step")
"""Parts of the plan that follow from a strategy; here they are `STATES`."""

TRAINER: Any = SimpleNamespace(
    strategy="zero1", precision="bf16-mixed", activation_checkpointing=True, offload=False
)
"""As `zero*` computes: bf16 weights. Only activations, logits and the head are read of the plan."""


def measure(sizes: Sizes, name: str, kind: str, way: str) -> dict[str, Any]:
    """Time the steps of one contender; see `benchmarks/gpu.py`."""
    if kind == "sft":
        trees, make = sizes.trees(2, 7600, 8, 35, 35), supervised
    else:
        trees, make = sizes.trees(1, 10_000, 16, 1, 1024), policy
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    model = sizes.model(name, attention_of(way), torch.bfloat16)
    compute = trl_way(model, end_tokenizer()) if way == "trl" else WAYS.get(way, forest)
    seconds, norm = timed(model, compute, trees, make(trees, DEVICE))
    body = anatomy(sizes.settings(name))
    samples = sum(len(tree.branches) for tree in trees)
    found = {"seconds": seconds, "samples_per_second": samples / seconds, "grad_norm": norm}
    if peak := flops.peak_flops():
        found["mfu"] = operations(body, trees, way) / seconds / peak
    if way.startswith("forest"):
        settings = sizes.settings(name)
        settings.attention = way.removeprefix("forest-")
        found["planned_gib"] = planned(body, settings, trees) / GIB
    if DEVICE.type == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_allocated() / GIB
        found["reserved_gib"] = torch.cuda.max_memory_reserved() / GIB
    return found


def attention_of(way: str) -> str:
    """The attention that a contender's model is built with."""
    if way.startswith("forest-"):
        return choose(way.removeprefix("forest-"), torch.bfloat16)
    return "prefix_grouper" if way == "prefix_grouper" else "sdpa"


WAYS: dict[str, Way] = {"alone": alone, "prefix_grouper": grouped}


def trl_way(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Way:
    """TRL's GRPOTrainer with its own function for log-probabilities, one completion at a time."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    with tempfile.TemporaryDirectory() as folder:
        trainer = GRPOTrainer(
            model=model,
            reward_funcs=lambda completions, **_: [0.0] * len(completions),
            args=GRPOConfig(
                output_dir=folder,
                use_cpu=DEVICE.type == "cpu",
                bf16=False,
                gradient_checkpointing=False,  # the model has it already
                report_to=[],
                disable_tqdm=True,
            ),
            train_dataset=Dataset.from_dict({"prompt": ["<end>"]}),
            processing_class=tokenizer,
        )
    trainer.model.train()

    def logprobs(_: PreTrainedModel, trees: Sequence[Tree]) -> Iterator[Tensor]:
        for tree in trees:
            for branch in tree.branches:
                ids = tree.trunk + branch.prompt + branch.completion
                row = torch.tensor([ids], device=DEVICE)
                found = trainer._get_per_token_logps_and_entropies(
                    trainer.model, row, torch.ones_like(row), len(branch.completion)
                )
                yield found[0][0]

    return logprobs


def timed(
    model: PreTrainedModel, compute: Way, trees: Sequence[Tree], loss: Loss
) -> tuple[float, float]:
    """Seconds of the fastest step after the first, and the first one's gradient norm."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, fused=True)
    seconds, norms = [], []
    for _ in range(STEPS):
        began = time.perf_counter()
        _, norm = update(model, optimizer, compute(model, trees), loss)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
        norms.append(norm)
    return min(seconds[1:]), norms[0]


def operations(body: Anatomy, trees: Sequence[Tree], way: str) -> float:
    """Floating-point operations that a contender's rows need: forward and backward, none twice."""
    total = 0.0
    for tree in trees:
        branches = tuple(map(len, tree.branches))
        learnt = [len(branch.completion) for branch in tree.branches]
        if way in ("alone", "trl"):
            rows = zip(branches, learnt, strict=True)
            shapes = [TreeShape(len(tree.trunk), (own,), count) for own, count in rows]
        else:
            shapes = [TreeShape(len(tree.trunk), branches, sum(learnt))]
        total += sum(flops.training(body, shape, checkpointing=False) for shape in shapes)
        if way.startswith("forest"):
            total -= flops.last_layer(body, shapes[0], checkpointing=False)
    return total


def planned(body: Anatomy, settings: Any, trees: Sequence[Tree]) -> float:
    """Bytes of the states and of what `stage=plan` computes for activations and logits.

    The trees have one shape.
    """
    branches = tuple(map(len, trees[0].branches))
    learnt = sum(len(branch.completion) for branch in trees[0].branches)
    shape = TreeShape(len(trees[0].trunk), branches, learnt)
    kept = activations(settings, TRAINER, body, shape)
    moments = memory(body, TRAINER, 1, kept, Load(len(trees), shape)).moments
    rest = [sum(size for name, size in parts.items() if name not in FIXED)
            for parts in moments.values()]  # fmt: skip
    return STATES * body.base + max(rest)
