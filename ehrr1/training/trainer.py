"""Train a LightningModule in a run folder: log, checkpoints, resume."""

import logging
import sys
import warnings
from pathlib import Path
from statistics import fmean

from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers import Logger
from transformers.utils import logging as transformers_logging

from ehrr1 import parallel
from ehrr1.config.training import TrainerSettings
from ehrr1.files import read_jsonl
from ehrr1.prompts.schedule import StepData
from ehrr1.training.callbacks import Seeds, TrainLog
from ehrr1.training.checkpoints import (
    Checkpoints,
    PlainFile,
    check_processes,
    has_stopped_early,
    last_checkpoint,
)
from ehrr1.training.module import ForestModule
from ehrr1.training.strategies import environment, make_strategy, on_gpu
from ehrr1.training.targets import Targets, make_callbacks, make_loggers
from ehrr1.training.validation import Validation


def quiet() -> None:
    """Silence what Lightning says about each trainer: devices, tips, data loader workers."""
    transformers_logging.disable_progress_bar()
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning", "DeepSpeed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in (
        ".*does not have many workers.*",
        ".*litlogger.*",
        ".*not resumable.*",
        ".*no `val_dataloader`.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*does not exist in the model.*",
        ".*barrier.*using the device under current context.*",
        ".*is deprecated. Please use.*all_gather_single.*",
        ".*is deprecated. Please use.*reduce_scatter_single.*",
        ".*saving the DeepSpeed Stage 3 checkpoint.*",
        ".*Your `IterableDataset` has `__len__` defined.*",
        ".*`srun` command is available on your system but is not used.*",
    ):
        warnings.filterwarnings("ignore", text)


def make_trainer(
    trainer: TrainerSettings,
    clip: float,
    folder: Path,
    loggers: list[Logger],
    callbacks: list[Callback],
) -> Trainer:
    """Return a Lightning trainer for one pass over the planned steps."""
    return Trainer(
        accelerator="gpu" if on_gpu(trainer) else "cpu",
        devices=parallel.size() // trainer.nodes,
        num_nodes=trainer.nodes,
        precision=trainer.precision,
        strategy=make_strategy(trainer, clip),
        plugins=[environment(), PlainFile()],
        max_epochs=1,
        default_root_dir=folder,
        logger=loggers,
        log_every_n_steps=1,
        callbacks=callbacks,
        enable_checkpointing=any(isinstance(one, Checkpoint) for one in callbacks),  # of the user
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,  # `Validation` evaluates
        # callbacks that follow a metric then do so after an evaluation, not at the epoch's end
        check_val_every_n_epoch=None,
        val_check_interval=1,
        use_distributed_sampler=False,
    )


def fit(
    module: ForestModule,
    data: StepData,
    folder: Path,
    trainer: TrainerSettings,
    *,
    description: str,
    seed: int,
    save_seconds: float,
    eval_every: int | None = None,
    logger: Targets | None = None,
    callbacks: Targets | None = None,
) -> int:
    """Train `module` over the steps of `data`, evaluate it, and return the number of steps done.

    A run that was stopped resumes from the last checkpoint of `folder`: weights, optimizer,
    schedule, the state of callbacks and the position in the data. Nothing is done if the last step
    is saved, or if a callback (`EarlyStopping`) has ended the run before it. With `eval_every` it
    is evaluated after every so many steps too, and the best checkpoints stay as `trainer` says.
    `logger` and `callbacks` are the sections of the configuration. Raises UserError for a
    checkpoint that this number of processes cannot read.
    """
    quiet()
    seed_everything(seed, verbose=False)
    steps = len(data.training.plan)
    checkpoint, start = parallel.from_first(lambda: last_checkpoint(folder / "checkpoints"))
    ended = parallel.from_first(lambda: has_stopped_early(folder / "checkpoints"))
    if ended or start >= steps:
        return start
    check_processes(checkpoint)
    data.training.start = start
    best = (trainer.save_top_k, trainer.monitor)
    saver = Checkpoints(folder / "checkpoints", start, steps, save_seconds, *best)
    attached: list[Callback] = [
        Seeds(seed, start),
        TrainLog(folder / "train.jsonl", data.training, description),
        *make_callbacks(callbacks or {}, folder),
        saver,
    ]
    if data.evaluation is not None:
        attached.append(Validation(data.evaluation, eval_every, folder / "eval.jsonl", saver))
    loggers = make_loggers(logger or {}, folder, start)
    made = make_trainer(trainer, module.settings.clip, folder, loggers, attached)
    made.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    if saver.done < steps and parallel.rank() == 0:
        print(f"{description}: a callback stopped it after {saver.done} steps", file=sys.stderr)
    return saver.done


def log_summary(log: Path, steps: int = 20) -> dict[str, float]:
    """Return the summary of train.jsonl: losses and the throughput of the whole run.

    `train/loss/first` and `train/loss/last` are means of so many `steps`, as single steps differ
    more by their samples than by what was learnt.
    """
    lines = list(read_jsonl(log, ("loss", "seconds", "tokens", "samples", "memory_gib")))
    losses = [line["loss"] for line in lines]
    seconds = sum(line["seconds"] for line in lines)
    found = {
        "train/loss/first": fmean(losses[:steps]),
        "train/loss/last": fmean(losses[-steps:]),
        "train/tokens": sum(line["tokens"] for line in lines),
        "train/tokens_per_second": sum(line["tokens"] for line in lines) / seconds,
        "train/samples_per_second": sum(line["samples"] for line in lines) / seconds,
        "train/data_share": sum(line["data_seconds"] for line in lines) / seconds,
        "train/memory_gib": max(line["memory_gib"] for line in lines),
    }
    if all("mfu" in line for line in lines):
        found["train/mfu"] = sum(line["mfu"] * line["seconds"] for line in lines) / seconds
    return found
