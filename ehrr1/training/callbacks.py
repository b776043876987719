"""What a training run leaves in its folder while it runs: train.jsonl, tb/ and checkpoints/."""

import json
import re
import time
from pathlib import Path
from typing import Any, TextIO

from pytorch_lightning import Callback, LightningModule, Trainer

from ehrr1.files import replacing
from ehrr1.progress import bar
from ehrr1.training.module import ForestModule

NAME = re.compile(r"step=(\d+)\.ckpt")


def last_checkpoint(folder: Path) -> tuple[Path | None, int]:
    """The newest checkpoint of `folder` and the number of steps done in it; (None, 0) if none.

    Half-written ones have other names and are never found.
    """
    found = {
        int(match[1]): path
        for path in folder.glob("step=*.ckpt")
        if (match := NAME.fullmatch(path.name))
    }
    return (found[max(found)], max(found)) if found else (None, 0)


class Checkpoints(Callback):
    """Saves everything that a resumed run needs, at least every `seconds` of training.

    A checkpoint is named by its steps done, appears whole or not at all, and replaces the one
    before only then. `start` is the number of steps done before this process.
    """

    def __init__(self, folder: Path, start: int, seconds: float, every: int | None = None):
        self.folder, self.done = folder, start
        self.seconds, self.every = seconds, every
        self.saved_at = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.done += 1
        due = time.monotonic() - self.saved_at >= self.seconds
        if due or (self.every and self.done % self.every == 0):
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        earlier, step = last_checkpoint(self.folder)
        if step < self.done:
            with replacing(self.folder / f"step={self.done:08d}.ckpt") as temporary:
                trainer.save_checkpoint(temporary)
            if earlier is not None:
                earlier.unlink()
        self.saved_at = time.monotonic()


class TrainLog(Callback):
    """Writes what the module watched in a step: a line a step, a curve a number, and the bar.

    After a resume from step `start`, lines of later steps (done, but lost) are dropped, so that
    train.jsonl has every step once.
    """

    def __init__(self, path: Path, steps: int, start: int, description: str):
        self.path, self.steps, self.start, self.description = path, steps, start, description
        self.done = start
        self.file: TextIO | None = None
        self.bar = bar()

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        with replacing(self.path) as temporary:
            temporary.write_text("".join(lines[: self.start]))
        self.file = self.path.open("a", encoding="utf-8")
        self.bar.start()
        self.task = self.bar.add_task(self.description, total=self.steps, completed=self.start)

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        assert isinstance(module, ForestModule)
        outputs = module.watched
        self.done += 1
        values = {"step": self.done, **outputs, "resumed_from": self.start}
        assert self.file is not None
        self.file.write(json.dumps(values) + "\n")
        self.file.flush()
        if trainer.logger is not None:
            trainer.logger.log_metrics({f"train/{k}": v for k, v in outputs.items()}, self.done)
        text = f"{self.description}  loss {outputs['loss']:.3f}"
        if "reward" in outputs:
            text += f"  reward {outputs['reward']:.3f}"
        self.bar.update(self.task, completed=self.done, description=text)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.close()

    def on_exception(
        self, trainer: Trainer, module: LightningModule, exception: BaseException
    ) -> None:
        if self.file is not None:
            self.close()

    def close(self) -> None:
        assert self.file is not None
        self.file.close()
        self.bar.stop()
