"""Evaluation on held-out steps, during training and after its last step."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.seed import isolate_rng

from ehrr1 import parallel
from ehrr1.files import json_line, write_jsonl
from ehrr1.prompts.schedule import Steps
from ehrr1.training.checkpoints import Checkpoints
from ehrr1.training.module import ForestModule


class Validation(Callback):
    """Evaluates after the last step, and after every `every` steps (None: after no other).

    The metrics become a line of `path` and a point of each logger's curves. Callbacks find them in
    `trainer.callback_metrics` when their `on_validation_end` is called, as after a validation of
    Lightning's; `saver` then decides which checkpoints stay.

    An evaluation follows the saver's turn, so that a signal is acted on at once. If the run stops
    in between, the evaluation is done when it resumes, or only its result passed on to callbacks
    whose state was saved before it: a resumed run takes the decisions of an uninterrupted one.
    """

    def __init__(self, held_out: Steps, every: int | None, path: Path, saver: Checkpoints):
        self.held_out, self.every, self.path, self.saver = held_out, every, path, saver
        self.lines: list[dict[str, float]] = []
        self.evaluated = 0  # the step of the last evaluation that callbacks have seen

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds of this callback."""
        return {"evaluated": self.evaluated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore `state_dict`."""
        self.evaluated = state_dict["evaluated"]

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Read the lines of earlier evaluations, and make up for one that a stop left out."""
        start = self.saver.done
        text = parallel.from_first(lambda: self.path.read_text() if self.path.exists() else "")
        # those of steps that a stopped run has done and lost are done again
        lines = (
            json_line(self.path, number, line, ("step",))
            for number, line in enumerate(text.splitlines(), 1)
        )
        self.lines = [line for line in lines if line["step"] <= start]
        if not (start and self._is_due(start) and self.evaluated < start):
            return
        if self.lines and self.lines[-1]["step"] == start:
            line = self.lines[-1]
            found = {name: line[name] for name in line if name not in ("step", "seconds")}
            self.pass_on(trainer, module, found)
        else:
            self.evaluate(trainer, module)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: object) -> None:
        """Evaluate if it is due."""
        if self.saver.done == self.saver.steps or self._is_due(self.saver.done):
            self.evaluate(trainer, module)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Evaluate the last step of a run that a callback has stopped."""
        if self.evaluated < self.saver.done:
            self.evaluate(trainer, module, last=True)

    def _is_due(self, step: int) -> bool:
        return self.every is not None and step % self.every == 0

    def evaluate(self, trainer: Trainer, module: LightningModule, last: bool = False) -> None:
        """Evaluate, and pass the metrics on. Raises StoppedError after a signal.

        The `last` evaluation of a run is never broken off: nothing would be left to resume.
        """
        assert isinstance(module, ForestModule)
        begun = time.perf_counter()
        if not self._compute(trainer, module, last or self.saver.done == self.saver.steps):
            self.saver.stop(trainer)
        if module.evaluated:  # rl writes a file of its own
            seconds = {"seconds": time.perf_counter() - begun}
            self.lines.append({"step": self.saver.done, **module.evaluated, **seconds})
            if parallel.rank() == 0:
                write_jsonl(self.path, self.lines)
                for logger in trainer.loggers:
                    logger.log_metrics(module.evaluated, self.saver.done)
        self.pass_on(trainer, module, module.evaluated)

    def pass_on(self, trainer: Trainer, module: LightningModule, metrics: dict[str, float]) -> None:
        """Show an evaluation's `metrics` to callbacks and to the saver; rl's has none."""
        self.evaluated = self.saver.done
        if not metrics:
            return
        # `log` would hold them back until the epoch's end when a run starts
        trainer.callback_metrics.update({k: torch.tensor(v) for k, v in metrics.items()})
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            callback.on_validation_end(trainer, module)
        self.saver.keep(trainer, metrics)

    def _compute(self, trainer: Trainer, module: ForestModule, last: bool) -> bool:
        """Compute all held-out steps; return False if a signal came before the end."""
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
    """Compute without gradients and dropout, then restore modes and random number generators."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad(), isolate_rng():
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode
