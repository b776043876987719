"""stage=consolidate run=DIR: a Hugging Face folder from the last checkpoint of a training run.

A finished run has its hf/ already; this makes it for one that was stopped, or makes it again.
"""

from pathlib import Path

from rich.console import Console

from ehrr1 import runs
from ehrr1.config.schema import Config
from ehrr1.errors import UserError


def consolidate_run(cfg: Config, console: Console) -> None:
    """Write hf/ into the run folder `cfg.run`; raises UserError where nothing has been saved."""
    if cfg.run is None:
        raise UserError(
            "stage=consolidate: say which run by run=DIR, for example outputs/demo/adapt"
        )
    folder = Path(cfg.run)
    if not folder.is_dir():
        raise UserError(f"run={folder}: no such folder; give the folder of a training run")
    from ehrr1.training.checkpoints import consolidate

    with runs.held(folder):
        step = consolidate(folder)
    console.print(f"[bold]consolidate[/]: the weights after {step} steps -> {folder / 'hf'}")
