"""A logger of your own: all metrics as lines of JSON, for a tool that reads such lines.

Loggers get numbers, never texts of records. After a resume the lines go on at the checkpoint.
"""

import json
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities import rank_zero_only


class JsonLines(Logger):
    """Appends `{"step": N, "train/loss": ...}` to metrics.jsonl in `save_dir`."""

    def __init__(self, save_dir: str):
        super().__init__()
        self.path = Path(save_dir, "metrics.jsonl")
        self.path.parent.mkdir(parents=True, exist_ok=True)

    name = "json_lines"
    version = 0

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Leave out the settings, which config.yaml of the run has."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
