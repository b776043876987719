"""The stages: one file each, `run(cfg, run) -> metrics`, read top to bottom."""

import importlib
import time

from omegaconf import DictConfig
from rich.console import Console

from ehrr1 import runs
from ehrr1.errors import UserError

console = Console(stderr=True)


def execute(cfg: DictConfig) -> None:
    """Run the stage that `cfg.stage` names; `curriculum` runs all of them in order."""
    stages = runs.ORDER if cfg.stage == "curriculum" else (cfg.stage,)
    for stage in stages:
        _execute_one(cfg, stage)


def _execute_one(cfg: DictConfig, stage: str) -> None:
    _check_inputs(cfg, stage)
    with runs.opened(cfg, stage) as run:
        folder = runs.home(cfg) / stage
        if run is None:
            console.print(f"[bold]{stage}[/]: finished already, in {folder}")
            return
        console.print(f"[bold]{stage}[/]{': resumed' * run.resuming} -> {folder}")
        begin = time.monotonic()
        # imported here: `prepare` and `export` must not wait for torch
        module = importlib.import_module(f"ehrr1.stages.{stage}")
        metrics = module.run(cfg, run)
        seconds = time.monotonic() - begin
        runs.finish(run, {**metrics, "seconds": round(seconds, 3)})
        console.print(f"[bold]{stage}[/]: done in {seconds:.0f} s")


def _check_inputs(cfg: DictConfig, stage: str) -> None:
    """Raise UserError for missing inputs; a training stage adds what its model would need."""
    try:
        runs.find_inputs(cfg, stage)
    except UserError as error:
        if stage not in ("adapt", "reason", "rl"):
            raise
        from ehrr1.models.sizes import requirements

        raise UserError(f"{error}. {requirements(cfg.model)}") from None
