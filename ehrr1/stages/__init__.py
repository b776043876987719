"""The stages: one file each, `run(cfg, run) -> metrics`, read top to bottom."""

import importlib
import time
from contextlib import suppress

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
    if stage == "prepare" and cfg.data.shard is not None:
        _prepare_share(cfg)
        return
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


def _prepare_share(cfg: DictConfig) -> None:
    """Build one share of the store; whoever finds all shards built merges them."""
    from ehrr1.stages import prepare

    folder, share = runs.home(cfg) / "prepare", f"{cfg.data.shard} of {cfg.data.shards}"
    with runs.joined(cfg, "prepare", cfg.data.shard) as run:
        if run is None:
            console.print(f"[bold]prepare[/]: finished already, in {folder}")
            return
        left = prepare.build_share(cfg, run)
    console.print(f"[bold]prepare[/]: share {share} is built; {left} shards are missing")
    if not left:
        with suppress(runs.FolderInUseError):  # another share is finishing and will merge
            whole = cfg.copy()
            whole.data.shard = None
            _execute_one(whole, "prepare")


def _check_inputs(cfg: DictConfig, stage: str) -> None:
    """Raise UserError for missing inputs; a training stage adds what its model would need."""
    try:
        runs.find_inputs(cfg, stage)
    except UserError as error:
        if stage not in ("adapt", "reason", "rl"):
            raise
        from ehrr1.models.sizes import requirements

        raise UserError(f"{error}. {requirements(cfg.model)}") from None
