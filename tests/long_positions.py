"""A process of a group that trains in bf16, and says what its model makes of a long record.

    torchrun --nproc-per-node=2 -m tests.long_positions FOLDER OTHERS...

prints a line of JSON for each strategy: the log-probabilities of the answers behind a record of
4,000 tokens, as the first training step on the model in FOLDER computes them, and the step's own
numbers. Then one for each other model: its buffers that ZeRO-3 in bf16 gets wrong.
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
from ehrr1.models.logprobs import token_logprobs
from ehrr1.prompts.forest import Forest, collate
from ehrr1.prompts.schedule import Step, StepData, Steps
from ehrr1.prompts.trees import Tree
from ehrr1.training.module import ForestModule
from ehrr1.training.sft import builder
from ehrr1.training.trainer import fit
from tests.settings import composed
from tests.test_forest import random_tree

TOKENS = 4_000


def tree() -> Tree:
    return random_tree(random.Random(0), TOKENS, 4)


class Told(ForestModule):
    """Keeps the log-probabilities of each step."""

    def training_step(self, step: Step, index: int) -> None:
        def loss(forest: Forest) -> Tensor:
            self.found = token_logprobs(self.model, forest).logprobs
            return -self.found.mean() / self.trainer.world_size

        counts = {"tokens": step.tokens, "samples": step.samples}
        self.watched = self.update(step.forests, loss) | counts


def trained(folder: Path, strategy: str) -> dict[str, Any]:
    cfg = composed(
        *("experiment=released", "model=folder", f"model.path={folder}", f"trainer={strategy}"),
        *(f"trainer.devices={parallel.size()}", "trainer.precision=bf16-mixed"),
        *("adapt.lr=1e-3", "adapt.warmup=0.0", "adapt.beta2=0.99"),
    )
    tokenizer: Any = None  # the folder is random weights
    module = Told(builder(cfg, folder, tokenizer), cfg.adapt, 1)
    one = Steps([[0]], lambda indices: Step([collate([tree()])], 1.0, TOKENS, 1))
    with TemporaryDirectory() as out:
        run = parallel.from_first(lambda: out)
        fit(module, StepData(one), Path(run), cfg.trainer, description="", seed=0, save_seconds=1e9)
        parallel.barrier()
    return {"strategy": strategy, "logprobs": module.found.tolist()} | module.watched


def wrong_buffers(folder: Path) -> list[str]:
    """Buffers of a model that is divided while it is built, against those of one that is not."""
    import deepspeed

    model = ModelSettings.of_folder(None)
    zero3 = {"zero_optimization": {"stage": 3}, "bf16": {"enabled": True}}
    config = zero3 | {"train_micro_batch_size_per_gpu": 1}
    sharding: Sharding = partial(deepspeed.zero.Init, config_dict_or_path=config)
    divided = load_model(model, folder, dtype=torch.bfloat16, sharding=sharding)
    whole: PreTrainedModel = read_whole(folder, torch.bfloat16)
    found = dict(divided.named_buffers())
    return [
        name
        for name, buffer in whole.named_buffers()
        if found[name].dtype != buffer.dtype or not torch.equal(found[name], buffer)
    ]


def main() -> None:
    import deepspeed

    first, *others = map(Path, sys.argv[1:])
    parallel.join(gpu=False)
    lines = [trained(first, strategy) for strategy in ("ddp", "zero1", "zero2", "zero3")]
    deepspeed.init_distributed("gloo")
    lines += [{"folder": folder.name, "wrong": wrong_buffers(folder)} for folder in others]
    if parallel.rank() == 0:
        print("\n".join(map(json.dumps, lines)))


if __name__ == "__main__":
    main()
