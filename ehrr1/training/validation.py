"""The held-out steps, computed while a run trains and after its last step."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.seed import isolate_rng

from ehrr1 import parallel
from ehrr1.files import write_jsonl
from ehrr1.prompts.schedule import Steps
from ehrr1.training.checkpoints import METRIC, Checkpoints
from ehrr1.training.module import ForestModule


class Validation(Callback):
    """Evaluates after the last step, and after every `every` steps (None: after no other).

    What the module found is a line of `path`, a point of each of TensorBoard's curves, and tells
    `saver` which checkpoint is good. It comes behind the saver's own turn: a signal is not made to
    wait, and an evaluation that a stop left out is made up for when the run goes on.
    """

    def __init__(self, held_out: Steps, every: int | None, path: Path, saver: Checkpoints):
        self.held_out, self.every, self.path, self.saver = held_out, every, path, saver
        self.lines: list[dict[str, float]] = []

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        start = self.saver.done
        text = parallel.from_first(lambda: self.path.read_text() if self.path.exists() else "")
        # those of steps that a stopped run has done and lost are done again
        lines = map(json.loads, text.splitlines())
        self.lines = [line for line in lines if line["step"] <= start]
        if start and self._is_due(start) and start not in {line["step"] for line in self.lines}:
            self.evaluate(trainer, module)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
        if self.saver.done == self.saver.steps or self._is_due(self.saver.done):
            self.evaluate(trainer, module)

    def _is_due(self, step: int) -> bool:
        return self.every is not None and step % self.every == 0

    def evaluate(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, ForestModule)
        begun = time.perf_counter()
        if not self._compute(trainer, module):
            self.saver.stop(trainer)
        if not module.evaluated:
            return  # it has written its own
        seconds = {"seconds": time.perf_counter() - begun}
        self.lines.append({"step": self.saver.done, **module.evaluated, **seconds})
        if parallel.rank() == 0:
            write_jsonl(self.path, self.lines)
            if trainer.logger is not None:
                trainer.logger.log_metrics(module.evaluated, self.saver.done)
        self.saver.keep(trainer, module.evaluated[METRIC])

    def _compute(self, trainer: Trainer, module: ForestModule) -> bool:
        """Whether all steps were computed, and the process not told to stop meanwhile. The last
        evaluation is not stopped: a run whose last step is saved has nothing left to do."""
        last = self.saver.done == self.saver.steps
        with undisturbed(module):
            module.on_validation_start()
            for number, step in enumerate(self.held_out):
                if not last and self.saver.told_to_stop():
                    return False
                moved = trainer.strategy.batch_to_device(step)
                trainer.strategy.validation_step(moved, number)
            module.on_validation_end()
        return True


@contextmanager
def undisturbed(module: LightningModule) -> Iterator[None]:
    """Without gradients and dropout; modes and random numbers are then as they were before."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), isolate_rng():
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode
