"""The folder of a finished evaluation, known by its files: neither Polars nor torch is needed."""

from pathlib import Path

from ehrr1.errors import UserError

FINISHED = ("predictions.parquet", "config.yaml")
"""Files of a finished evaluation that are scored again or compared."""


def require_finished(setting: str, folder: Path) -> None:
    """Raise UserError, which names `setting`, if a folder is not that of a finished evaluation."""
    if missing := [name for name in FINISHED if not (folder / name).exists()]:
        raise UserError(
            f"{setting}={folder}: it has no {' and no '.join(missing)}; give the folder of a "
            "finished evaluation (outputs/NAME/eval)"
        )
