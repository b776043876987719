"""Running a LightningModule in a run folder: log, checkpoints, resume."""

import json
import logging
import warnings
from pathlib import Path
from statistics import fmean

import torch
from omegaconf import DictConfig
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.loggers import TensorBoardLogger

from ehrr1.errors import UserError
from ehrr1.prompts.dataset import StepData
from ehrr1.training.callbacks import Checkpoints, TrainLog, last_checkpoint
from ehrr1.training.module import ForestModule


def quiet() -> None:
    """Silence what Lightning says about every trainer: devices, tips, data loader workers."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for text in (
        ".*does not have many workers.*",
        ".*litlogger.*",
        ".*not resumable.*",
        ".*no `validation_step`.*",
        ".*isinstance.treespec, LeafSpec.*",
    ):
        warnings.filterwarnings("ignore", text)


def make_trainer(settings: DictConfig, folder: Path | None, callbacks: list[Callback]) -> Trainer:
    """A Lightning trainer for one pass over the planned steps; TensorBoard goes to `folder`/tb."""
    if settings.devices != 1:
        raise UserError(f"trainer.devices={settings.devices}: training runs on one device; set 1")
    if settings.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("trainer.accelerator=gpu: no GPU is found here; set cpu or auto")
    logger = TensorBoardLogger(folder, name="tb", version="") if folder else False
    return Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        precision=settings.precision,
        strategy="auto",
        max_epochs=1,
        logger=logger,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0 if folder else None,
        use_distributed_sampler=False,
    )


def fit(
    module: ForestModule,
    data: StepData,
    folder: Path,
    settings: DictConfig,
    *,
    description: str,
    seed: int,
    save_seconds: float,
) -> None:
    """Train `module` over the steps of `data`; a run that was stopped resumes.

    It goes on from the last checkpoint of `folder`: weights, optimizer, schedule and the position
    in the data. Afterwards the module holds the final weights.
    """
    quiet()
    seed_everything(seed, verbose=False)
    steps = len(data.training.plan)
    checkpoint, start = last_checkpoint(folder / "checkpoints")
    if checkpoint is not None and start >= steps:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        module.load_state_dict(state["state_dict"])
        return
    data.training.start = start
    callbacks: list[Callback] = [
        TrainLog(folder / "train.jsonl", steps, start, description),
        Checkpoints(folder / "checkpoints", start, save_seconds),
    ]
    trainer = make_trainer(settings, folder, callbacks)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)


def evaluate(module: ForestModule, data: StepData, settings: DictConfig) -> None:
    """Run the module's validation steps over the evaluation batches of `data`."""
    quiet()
    make_trainer(settings, None, []).validate(module, datamodule=data, verbose=False)


def first_and_last_loss(log: Path, steps: int = 20) -> tuple[float, float]:
    """The mean loss of the first and of the last `steps` lines of train.jsonl.

    Single steps differ more by their samples than by what was learnt.
    """
    losses = [json.loads(line)["loss"] for line in log.read_text().splitlines()]
    return fmean(losses[:steps]), fmean(losses[-steps:])
