"""stage=consolidate run=DIR: a Hugging Face folder from a checkpoint of a training run.

A finished run has that of its last checkpoint already; this makes it for one that was stopped, or
from one of the best (`checkpoint`).
"""

import shlex
from pathlib import Path

from rich.console import Console
from rich.text import Text

from ehrr1 import runs
from ehrr1.command import typed_as
from ehrr1.config.schema import Config
from ehrr1.errors import UserError

STEP = "hf/step"
"""The metric of a finished run whose hf/ is not that of its last checkpoint."""


def consolidate_run(cfg: Config, console: Console) -> None:
    """Write hf/ into the run folder `cfg.run`; raises UserError where nothing has been saved."""
    if cfg.run is None:
        raise UserError(
            "stage=consolidate: say which run by run=DIR, for example outputs/demo/adapt"
        )
    folder = Path(cfg.run)
    if not folder.is_dir():
        raise UserError(f"run={folder}: no such folder; give the folder of a training run")
    from ehrr1.training.checkpoints import last_checkpoint
    from ehrr1.training.consolidation import consolidate

    again = (
        f"{typed_as()} stage=consolidate {shlex.quote(f'run={folder}')} checkpoint={cfg.checkpoint}"
    )
    closed = runs.are_closed(folder, folder.name)
    with runs.kept_beside(folder, closed), runs.held(folder), runs.rewriting(folder, "hf", again):
        step = consolidate(folder, cfg.checkpoint)
        if runs.is_finished(folder):
            _note(folder, step, last_checkpoint(folder / "checkpoints")[1])
    told = f": the weights after {step} steps -> {folder / 'hf'}"
    console.print(Text.assemble(("consolidate", "bold"), told), soft_wrap=True)


def _note(folder: Path, step: int, last: int) -> None:
    """Record in a finished run's metrics.json the checkpoint that its hf/ is from, unless the last.

    Runs that were made from another hf/ are then refused (`runs.differences`).
    """
    metrics = runs.metrics_of(folder)
    plain = {name: value for name, value in metrics.items() if name != STEP}
    noted = plain if step == last else plain | {STEP: step}
    if noted != metrics:
        runs.rewrite_metrics(folder, noted)
