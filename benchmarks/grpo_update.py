"""The update of GRPO alone, on rows that are given: ehrr1's forest, or prefix_grouper's groups.

Run by `benchmarks/grpo_speed.py`, prefix_grouper's in an environment of its own, that holds it with
torch and transformers and not this project. Both start from the model and the first prompt that
were written there, learn the same random completions with the same advantages, and differ in
nothing but how completions share their prompt (`benchmarks/prefix_sharing.py`).
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.grpo_speed import COMPLETION_TOKENS, LEARNING_RATE, Case
from benchmarks.prefix_sharing import Way, forest, grouped, policy, update
from ehrr1.models.attention import choose
from ehrr1.models.prune_last_layer import shorten_last_layer
from ehrr1.prompts.trees import Branch, Tree

CONTENDERS: dict[str, tuple[str, Way]] = {
    "ehrr1": (choose("sdpa", torch.float32), forest),
    "prefix_grouper": ("prefix_grouper", grouped),
}


def learn(given: argparse.Namespace) -> dict[str, Any]:
    """Take the steps; returns what they cost after the first, and what the first one found."""
    attention, way = CONTENDERS[given.contender]
    model = AutoModelForCausalLM.from_pretrained(
        given.folder / "model", attn_implementation=attention, dtype=torch.float32
    ).train()
    if way is forest:
        shorten_last_layer(model)
    if given.checkpointing:
        model.gradient_checkpointing_enable()
    prompt = json.loads((given.folder / "prompts.json").read_text(encoding="utf-8"))[0]
    generator = torch.Generator().manual_seed(1)
    shape = (given.case.group, COMPLETION_TOKENS)
    drawn = torch.randint(2, model.config.vocab_size, shape, generator=generator).tolist()
    # as `training/groups.py` lays out a group
    branches = [Branch(str(n), prompt[-1:], tokens) for n, tokens in enumerate(drawn)]
    trees = [Tree(prompt[:-1], branches)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    loss = policy(trees, model.device)
    found: list[tuple[Any, float]] = []
    costs: list[tuple[float, float]] = []
    for _ in range(given.steps):
        began, cpu_began = time.perf_counter(), time.process_time()
        found.append(update(model, optimizer, way(model, trees), loss))
        costs.append((time.perf_counter() - began, time.process_time() - cpu_began))
    seconds, cpu_seconds = map(min, zip(*costs[1:], strict=True))
    return {
        "update": seconds,
        "cpu_update": cpu_seconds,
        "logprobs": found[0][0].tolist(),
        "grad_norm": found[0][1],
    }


def main() -> None:
    reader = argparse.ArgumentParser()
    reader.add_argument("contender", choices=list(CONTENDERS))
    reader.add_argument("folder", type=Path)
    reader.add_argument("output", type=Path)
    reader.add_argument("--case", type=Case.read, required=True)
    reader.add_argument("--steps", type=int, required=True)
    reader.add_argument("--checkpointing", action="store_true")
    given = reader.parse_args()
    given.output.write_text(json.dumps(learn(given)), encoding="utf-8")


if __name__ == "__main__":
    main()
