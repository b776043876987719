"""Write checkpoints whole or not at all, and find them again.

A checkpoint is `checkpoints/step=<steps done>.ckpt`: a file of Lightning's, or under ZeRO a folder
of DeepSpeed's in which every process has its part. It holds all that a resumed run needs. The last
one stays, and those that `best.json` lists: the best by `trainer.monitor`. `stopped.json` marks a
run that a callback has stopped before its last step.
"""

import errno
import os
import re
import signal
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from math import isfinite
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NoReturn

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins.io import TorchCheckpointIO

from ehrr1 import parallel
from ehrr1.damage import reading
from ehrr1.entry import leave_terminal
from ehrr1.errors import StoppedError, UserError
from ehrr1.files import read_json, remove, sync, sync_folder, write_json
from ehrr1.models.saving import pause

NAME = re.compile(r"step=(\d+)\.ckpt")


def checkpoints(folder: Path) -> dict[int, Path]:
    """Return the checkpoints of `folder` by the steps done, in that order.

    Half-written ones have other names.
    """
    found = {
        int(match[1]): path
        for path in folder.glob("step=*.ckpt")
        if (match := NAME.fullmatch(path.name))
    }
    return dict(sorted(found.items()))


def last_checkpoint(folder: Path) -> tuple[Path | None, int]:
    """Return the newest checkpoint of `folder` and its number of steps done; (None, 0) if none."""
    found = checkpoints(folder)
    return (found[max(found)], max(found)) if found else (None, 0)


def check_processes(checkpoint: Path | None) -> None:
    """Raise UserError if ZeRO has divided a checkpoint among another number of processes.

    A checkpoint of `single` or `ddp` is one file that any number of processes reads.
    """
    if checkpoint is None or checkpoint.is_file():
        return
    wrote, processes = len(list(checkpoint.rglob("*_optim_states.pt"))), parallel.size()
    if wrote != processes:
        run = checkpoint.parents[1]
        raise UserError(
            f"trainer.devices, trainer.nodes: {processes} processes cannot resume {checkpoint}, "
            f"in which ZeRO has divided the optimizer among {wrote}; start {wrote}, or overwrite="
            f"true to begin anew (stage=consolidate run={run} writes what it has learnt to hf/)"
        )


def best_checkpoints(folder: Path, monitor: str | None = None) -> dict[int, float]:
    """Return the metric of each checkpoint that stays as one of the best, the best first.

    Keys are steps done. With `monitor` only checkpoints that were ranked by this metric count.
    """
    listed = read_json(folder / "best.json") if (folder / "best.json").exists() else []
    there = checkpoints(folder)
    return {
        one["step"]: value
        for one in listed
        for name, value in one.items()
        if name != "step" and one["step"] in there and monitor in (None, name)
    }


def has_stopped_early(folder: Path) -> bool:
    """Return whether a callback has ended the run whose last checkpoint is in `folder`."""
    mark = folder / "stopped.json"
    return mark.exists() and read_json(mark)["step"] == last_checkpoint(folder)[1]


class PlainFile(TorchCheckpointIO):
    """Writes a checkpoint directly to its path.

    Lightning's own holds the file in memory first, then writes it to the system's temporary folder,
    where a killed run leaves it.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write `checkpoint` to `path`, whose folder is created."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        torch.save(checkpoint, path)

    def load_checkpoint(self, path: Any, *how: Any, **given: Any) -> dict[str, Any]:
        """Return the content of a checkpoint. Raises DamagedError for a file that is none."""
        with reading_checkpoint(Path(path)):
            return super().load_checkpoint(path, *how, **given)


def reading_checkpoint(path: Path) -> AbstractContextManager[None]:
    """Return a context that raises DamagedError for a checkpoint that is not whole."""
    remedy = "delete it; the same command goes on from an earlier one, or from the beginning"
    return reading(path, RuntimeError, UnpicklingError, EOFError, KeyError, OSError, remedy=remedy)


class Checkpoints(Callback):
    """Saves during training, at its end, and when the process receives a signal to stop.

    During training it saves `seconds` after the last save, or later where saving takes long
    (`models.saving.pause`). A checkpoint replaces its predecessor only when it is complete. The
    last one always stays (Lightning's `save_last`), and the `save_top_k` with the lowest value of
    the metric `monitor`, by evaluations. `start` is the number of steps done before this process,
    `steps` that of the whole run. On SIGTERM, SIGUSR1, SIGINT and SIGHUP the current step is
    finished and saved, then StoppedError ends the process. All processes take each decision
    together.

    It is no `ModelCheckpoint`: that one writes to the final path, where a killed run leaves half a
    file, and each process takes its decisions by its own clock and signals.
    """

    def __init__(
        self,
        folder: Path,
        start: int,
        steps: int,
        seconds: float,
        save_top_k: int = 0,
        monitor: str = "eval/loss",
    ):
        self.folder, self.done, self.steps, self.seconds = folder, start, steps, seconds
        self.save_top_k, self.monitor = save_top_k, monitor
        # what a save takes is known after the first, which also shows early that there is room
        self.saved_at, self.pause = time.monotonic(), seconds
        self.told: signal.Signals | None = None
        self.handlers: dict[signal.Signals, Any] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Remove what a killed run left half-written, and listen for signals."""
        if parallel.rank() == 0:
            for leftover in self.folder.glob(".step=*"):
                remove(leftover)
        # in place of Lightning's own, which would wait for other processes inside the handler
        self.handlers = parallel.on_signals(self._note)

    def _note(self, number: int, frame: Any) -> None:
        leave_terminal(number)
        self.told = signal.Signals(number)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Count the step, and save if it is time or a process received a signal."""
        self.done += 1
        late = time.monotonic() - self.saved_at >= self.pause
        own = [float(late and parallel.rank() == 0), float(self.told or 0)]
        due, told = parallel.totals(own)
        # the end is saved when its evaluation is there too
        if self.done == self.steps:
            return
        if told:
            self.stop(trainer)
        if due:
            self.save(trainer)

    def told_to_stop(self) -> bool:
        """Return whether any process received a signal; all processes must call this together."""
        return any(parallel.totals([float(self.told or 0)]))

    def stop(self, trainer: Trainer) -> NoReturn:
        """Save and raise StoppedError."""
        self.save(trainer)
        raise StoppedError(self.told or signal.SIGTERM, self.done)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Save the last step, and mark a run that a callback has stopped before it."""
        if self.done < self.steps and parallel.rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(self.folder / "stopped.json", {"step": self.done})
        self.save(trainer)
        for one, handler in self.handlers.items():  # what follows has nothing to save
            signal.signal(one, handler)

    def save(self, trainer: Trainer) -> None:
        """Write the checkpoint of this step, unless it is there, and remove obsolete ones."""
        begun = time.monotonic()
        new = last_checkpoint(self.folder)[1] < self.done
        if new:
            whole = self.folder / f"step={self.done:08d}.ckpt"
            partial = self.folder / f".{whole.name}.partial"  # the same for all processes
            self.folder.mkdir(parents=True, exist_ok=True)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.flush()  # curves are not behind the checkpoint
            try:
                trainer.save_checkpoint(partial)
            except RuntimeError as error:
                raise _full(error, partial) from error
            parallel.barrier()
            if parallel.rank() == 0:
                sync(partial)  # the checkpoint that it replaces is removed next
                partial.rename(whole)
                sync_folder(self.folder)
        if parallel.rank() == 0:
            self._tidy()
        parallel.barrier()
        self.saved_at = time.monotonic()
        if new:
            self.pause = pause(self.seconds, self.saved_at - begun)

    def keep(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Save this step's weights if their `monitor` is among the `save_top_k` lowest."""
        if not self.save_top_k:
            return
        value = metrics[self.monitor]
        if parallel.from_first(lambda: self._choose(value)) and self.done < self.steps:
            self.save(trainer)

    def _choose(self, value: float) -> bool:
        """Return whether this step is among the best, and list it if so.

        It is listed before it is saved: the one that it replaces is removed when it is complete
        (`_tidy`).
        """
        values = best_checkpoints(self.folder, self.monitor) | {self.done: value}
        better = sum(one <= value for step, one in values.items() if step != self.done)
        if not isfinite(value) or better >= self.save_top_k:
            return False
        self._list(values)
        return True

    def _list(self, values: Mapping[int, float]) -> None:
        """Write which checkpoints stay: the lowest value first, of equal ones the earlier."""
        order = sorted(values, key=lambda step: (values[step], step))
        listed = [{"step": step, self.monitor: values[step]} for step in order]
        write_json(self.folder / "best.json", listed)

    def _tidy(self) -> None:
        """Remove the checkpoints that are neither the last nor among the best.

        With `save_top_k` 0 none is added, and those that are listed stay.
        """
        monitor = self.monitor if self.save_top_k else None
        there, listed = checkpoints(self.folder), best_checkpoints(self.folder, monitor)
        kept = dict(list(listed.items())[: self.save_top_k or None])
        if kept != listed:
            self._list(kept)
        for step, path in there.items():
            if step < max(there) and step not in kept:
                remove(path)


def _full(error: RuntimeError, path: Path) -> Exception:
    """Return the error for a full disk, which PyTorch reports as an unexpected file position."""
    if "inline_container" in str(error) or "PytorchStreamWriter" in str(error):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    return error
