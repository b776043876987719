"""Running a LightningModule in a run folder: log, checkpoints, resume."""

import json
import logging
import warnings
from pathlib import Path
from statistics import fmean

from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.loggers import TensorBoardLogger
from transformers.utils import logging as transformers_logging

from ehrr1 import parallel
from ehrr1.config.training import TrainerSettings
from ehrr1.prompts.schedule import StepData
from ehrr1.training.callbacks import Seeds, TrainLog
from ehrr1.training.checkpoints import Checkpoints, PlainFile, last_checkpoint
from ehrr1.training.module import ForestModule
from ehrr1.training.strategies import environment, make_strategy, on_gpu
from ehrr1.training.validation import Validation


def quiet() -> None:
    """Silence what Lightning says about every trainer: devices, tips, data loader workers."""
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
        ".*`srun` command is available on your system but is not used.*",
    ):
        warnings.filterwarnings("ignore", text)


def make_trainer(
    trainer: TrainerSettings,
    clip: float,
    folder: Path,
    callbacks: list[Callback],
    start: int,
) -> Trainer:
    """A Lightning trainer for one pass over the planned steps from `start` on; TensorBoard goes to
    `folder`/tb, where later steps that a stopped run has shown are taken back."""
    return Trainer(
        accelerator="gpu" if on_gpu(trainer) else "cpu",
        devices=parallel.size() // trainer.nodes,
        num_nodes=trainer.nodes,
        precision=trainer.precision,
        strategy=make_strategy(trainer, clip),
        plugins=[environment(), PlainFile()],
        max_epochs=1,
        logger=TensorBoardLogger(folder, name="tb", version="", purge_step=start + 1),
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,  # `Validation` does it
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
    keep_best: int = 0,
) -> None:
    """Train `module` over the steps of `data`, then evaluate it; a run that was stopped resumes.

    It goes on from the last checkpoint of `folder`: weights, optimizer, schedule and the position
    in the data. A run whose last step is saved has nothing left to do. With `eval_every` it is
    evaluated after every so many steps too, and the `keep_best` best checkpoints stay.
    """
    quiet()
    seed_everything(seed, verbose=False)
    steps = len(data.training.plan)
    checkpoint, start = parallel.from_first(lambda: last_checkpoint(folder / "checkpoints"))
    if start >= steps:
        return
    data.training.start = start
    saver = Checkpoints(folder / "checkpoints", start, steps, save_seconds, keep_best)
    callbacks: list[Callback] = [
        Seeds(seed, start),
        TrainLog(folder / "train.jsonl", data.training, description),
        saver,
    ]
    if data.evaluation is not None:
        callbacks.append(Validation(data.evaluation, eval_every, folder / "eval.jsonl", saver))
    made = make_trainer(trainer, module.settings.clip, folder, callbacks, start)
    made.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)


def log_summary(log: Path, steps: int = 20) -> dict[str, float]:
    """From train.jsonl: train/loss/first and last (means of so many steps: single ones differ more
    by their samples than by what was learnt), and throughput over the whole run."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
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
