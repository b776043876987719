"""Callbacks of every training run: its random seeds, train.jsonl, curves and progress bar."""

import json
import resource
import time
from pathlib import Path
from typing import Any, TextIO

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from ehrr1 import parallel
from ehrr1.files import replacing
from ehrr1.models.flops import peak_flops
from ehrr1.progress import bar
from ehrr1.prompts.schedule import Steps
from ehrr1.training.module import ForestModule

GIB = 2**30


class Seeds(Callback):
    """Seeds each step by the run's seed, the step and the process.

    Random draws (an adapter's dropout) are then the same in a resumed run.
    """

    def __init__(self, seed: int, start: int):
        self.seed, self.done = seed, start

    def on_train_batch_start(self, *_: Any) -> None:
        """Seed PyTorch's generators."""
        torch.manual_seed((self.seed * 1_000_003 + self.done) * 65_536 + parallel.rank())
        self.done += 1


class TrainLog(Callback):
    """Writes a step's metrics: a line of train.jsonl, a point of each logger's curves, the bar.

    It adds seconds, seconds spent waiting for data, tokens and samples per second, memory (GiB)
    and, where the hardware's peak is known, the share of it that was used (`mfu`). After a resume
    from step `start`, lines of later steps (done, but lost) are dropped, so that train.jsonl has
    each step once. Process 0 writes.
    """

    def __init__(self, path: Path, steps: Steps, description: str):
        self.path, self.steps, self.description = path, steps, description
        self.start = self.done = steps.start
        self.file: TextIO | None = None
        self.bar = bar()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Open train.jsonl and show the bar."""
        self.flops_a_token = 6 * inner_parameters(module)
        self.peak = trainer.world_size * peak_flops()
        self.waited = self.steps.waited
        if not trainer.is_global_zero:
            return
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        with replacing(self.path) as temporary:
            temporary.write_text("".join(lines[: self.start]))
        self.file = self.path.open("a", encoding="utf-8")
        self.bar.start()
        total = len(self.steps.plan)
        self.task = self.bar.add_task(self.description, total=total, completed=self.start)

    def on_train_batch_start(self, *_: Any) -> None:
        """Note the time."""
        self.began = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Write the step's metrics (`ForestModule.watched`)."""
        assert isinstance(module, ForestModule)
        self.done += 1
        values = module.watched | self.throughput(module.watched)
        if self.file is None:
            return
        self.file.write(
            json.dumps({"step": self.done, **values, "resumed_from": self.start}) + "\n"
        )
        self.file.flush()
        for logger in trainer.loggers:
            logger.log_metrics({f"train/{k}": v for k, v in values.items()}, self.done)
        text = f"{self.description}  loss {values['loss']:.3f}"
        if "reward" in values:
            text += f"  reward {values['reward']:.3f}"
        text += f"  {values['tokens_per_second']:,.0f} tokens/s  {values['memory_gib']:.1f} GiB"
        self.bar.update(self.task, completed=self.done, description=text)

    def throughput(self, watched: dict[str, float]) -> dict[str, float]:
        """Return the speed of this step.

        `watched["tokens"]` counts real tokens (no padding) of all processes, each trunk once.
        """
        data, self.waited = self.steps.waited - self.waited, self.steps.waited
        seconds = time.perf_counter() - self.began + data
        found = {
            "seconds": seconds,
            "data_seconds": data,
            "tokens_per_second": watched["tokens"] / seconds,
            "samples_per_second": watched["samples"] / seconds,
            "memory_gib": memory_gib(),
        }
        if self.peak:
            found["mfu"] = self.flops_a_token * watched["tokens"] / seconds / self.peak
        return found

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Close file and bar."""
        self.close()

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        """Close file and bar."""
        self.close()

    def close(self) -> None:
        """Close train.jsonl and take the bar away."""
        if self.file is not None:
            self.file.close()
            self.bar.stop()


def inner_parameters(module: LightningModule) -> int:
    """Return the number of a model's parameters without embeddings and head.

    Each takes 6 floating point operations per token (Kaplan et al., arXiv 2001.08361), the products
    of attention not counted.
    """
    assert isinstance(module, ForestModule)
    outer = {
        id(module.model.get_input_embeddings().weight),
        id(module.model.get_output_embeddings().weight),
    }
    inner = [p for p in module.model.parameters() if id(p) not in outer]
    # of a weight that ZeRO-3 has divided, `numel` is nothing and `ds_numel` all of it
    return sum(p.ds_numel if hasattr(p, "ds_numel") else p.numel() for p in inner)


def memory_gib() -> float:
    """Return the peak memory of this process in GiB: of its GPU if it has one, else of the CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
