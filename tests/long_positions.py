"""A process of a group that trains in bf16, and says what its model makes of a long record.

    torchrun --nproc-per-node=2 -m tests.long_positions FOLDER OTHERS...

prints a line of JSON for each strategy: the log-probabilities of the answers behind a record of
4,000 tokens, as the first training step on the model in FOLDER computes them, and the step's own
numbers. Then one for each other model in bf16 and in float32: its buffers that ZeRO-3 gets wrong,
and how far its log-probabilities behind that record are from those of the model read whole. And one
for the head of the first: how often ZeRO-3 gathers it for a row in many chunks.
"""

import json
import random
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ehrr1 import parallel
from ehrr1.config.training import ModelSettings
from ehrr1.models.loading import Sharding, load_model, read_whole
from ehrr1.models.logprobs import CHUNK, token_logprobs
from ehrr1.prompts.forest import Forest, collate
from ehrr1.prompts.schedule import Step, StepData, Steps
from ehrr1.prompts.trees import Tree
from ehrr1.training.checkpoints import last_checkpoint
from ehrr1.training.consolidation import learnt_weights
from ehrr1.training.module import ForestModule
from ehrr1.training.sft import builder
from ehrr1.training.trainer import fit
from tests.settings import composed
from tests.test_forest import random_tree

TOKENS = 4_000
VOCABULARY = 99


def tree() -> Tree:
    return random_tree(random.Random(0), TOKENS, 4)


class Told(ForestModule):
    """Keeps the log-probabilities of each step; `chunk` is the number of logits held at a time."""

    chunk: int

    def training_step(self, step: Step, index: int) -> None:
        def loss(forest: Forest) -> Tensor:
            self.found = token_logprobs(self.model, forest, chunk=self.chunk).logprobs
            return -self.found.mean() / self.trainer.world_size

        counts = {"tokens": step.tokens, "samples": step.samples}
        self.watched = self.update(step.forests, loss) | counts


def trained(folder: Path, strategy: str, chunk: int = CHUNK) -> dict[str, Any]:
    cfg = composed(
        *("experiment=released", "model=folder", f"model.path={folder}", f"trainer={strategy}"),
        *(f"trainer.devices={parallel.size()}", "trainer.precision=bf16-mixed"),
        *("adapt.lr=1e-3", "adapt.warmup=0.0", "adapt.beta2=0.99"),
    )
    tokenizer: Any = None  # the folder is random weights
    module = Told(builder(cfg, folder, tokenizer), cfg.adapt, 1)
    module.chunk = chunk
    one = Steps([[0]], lambda indices: Step([collate([tree()])], 1.0, TOKENS, 1))
    with TemporaryDirectory() as out:
        run = parallel.from_first(lambda: out)
        fit(module, StepData(one), Path(run), cfg.trainer, description="", seed=0, save_seconds=1e9)
        checkpoint, _ = last_checkpoint(Path(run) / "checkpoints")
        assert checkpoint is not None
        saved = dict(learnt_weights(checkpoint)) if parallel.rank() == 0 else {}
        sizes = {name: list(value.shape) for name, value in saved.items()}
        parallel.barrier()
    return {
        "strategy": strategy,
        "saved": sizes,
        "logprobs": module.found.tolist(),
    } | module.watched


def divided(folder: Path, dtype: torch.dtype) -> dict[str, Any]:
    """A model that is divided while it is built, against one that is not."""
    import deepspeed

    model = ModelSettings.of_folder(None)
    zero3 = {"zero_optimization": {"stage": 3}, "bf16": {"enabled": dtype == torch.bfloat16}}
    config = zero3 | {"train_micro_batch_size_per_gpu": 1}
    sharding: Sharding = partial(deepspeed.zero.Init, config_dict_or_path=config)
    parts = load_model(model, folder, dtype=dtype, sharding=sharding)
    whole: PreTrainedModel = read_whole(folder, dtype, parts.config._attn_implementation)
    found = dict(parts.named_buffers())
    wrong = [
        name
        for name, buffer in whole.named_buffers()
        if found[name].dtype != buffer.dtype or not torch.equal(found[name], buffer)
    ]
    forest = collate([tree()])
    with torch.no_grad(), deepspeed.zero.GatheredParameters(list(parts.parameters())):
        ours, theirs = (token_logprobs(one, forest).logprobs for one in (parts, whole.train()))
    apart = (ours - theirs).abs().max().item()
    return {"folder": folder.name, "dtype": str(dtype), "wrong": wrong, "apart": apart}


def gathered(folder: Path) -> dict[str, Any]:
    """Steps of ZeRO-3 on a row whose head is computed in one chunk and in many."""
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    fetch, calls = PartitionedParameterCoordinator.fetch_sub_module, []

    def counting(self: Any, module: Any, forward: bool) -> None:
        if type(module) is torch.nn.Linear and module.out_features == VOCABULARY:
            calls.append("forward" if forward else "backward")
        fetch(self, module, forward)

    PartitionedParameterCoordinator.fetch_sub_module = counting
    found: dict[str, Any] = {}
    for rows in (10_000, 2):
        calls.clear()
        told = trained(folder, "zero3", chunk=rows * VOCABULARY)
        found[str(rows)] = {"calls": list(calls), "norm": told["grad_norm"], "loss": told["loss"]}
    PartitionedParameterCoordinator.fetch_sub_module = fetch
    return {"head": found}


def main() -> None:
    import deepspeed

    first, *others = map(Path, sys.argv[1:])
    parallel.join(gpu=False)
    lines = [trained(first, strategy) for strategy in ("ddp", "zero1", "zero2", "zero3")]
    deepspeed.init_distributed("gloo")
    lines += [divided(folder, t) for folder in others for t in (torch.bfloat16, torch.float32)]
    lines.append(gathered(others[0].with_name("qwen3")))
    if parallel.rank() == 0:
        print("\n".join(map(json.dumps, lines)))


if __name__ == "__main__":
    main()
