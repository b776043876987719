"""Facts about an evaluation: data, protocol, experiment, model, software, date."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ehrr1 import runs
from ehrr1.config.schema import Config
from ehrr1.files import read_yaml
from ehrr1.runs.environment import version
from ehrr1.tasks.samples import Prepared

UNKNOWN = "not recorded"


def about(cfg: Config, prepared: Prepared | None) -> dict[str, str]:
    """Return the facts of the evaluation that is being published, by their names."""
    return _facts(cfg.plain(), prepared, version(), datetime.now(UTC))


def about_finished(folder: Path) -> dict[str, str]:
    """Return the facts of a finished evaluation, by their names.

    The software is the one that its environment.txt names, the date that of its predictions.
    """
    path = folder / "environment.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    software = next((line for line in lines if line.startswith("ehrr1 ")), UNKNOWN)
    prepare = runs.inputs_of(folder, "eval").get("prepare")
    prepared = None if prepare is None else Prepared(prepare)
    written = datetime.fromtimestamp((folder / "predictions.parquet").stat().st_mtime, UTC)
    return _facts(read_yaml(folder / "config.yaml"), prepared, software, written)


def _facts(
    settings: Mapping[str, Any], prepared: Prepared | None, software: str, date: datetime
) -> dict[str, str]:
    data, access = settings.get("data", {}), "open or closed is not recorded"
    if prepared is not None:  # what counts is what was prepared
        data = read_yaml(prepared.folder / "config.yaml")["data"]
        access = "open" if runs.data_is_open(prepared.folder) else "not open"
    name, variant = data.get("name", UNKNOWN), settings.get("variant")
    invented = ", invented patients" * (name == "synthetic")
    return {
        "data": f"{name}{invented}, {access}",
        "protocol": data.get("protocol", UNKNOWN),
        "experiment": settings["name"] + (f", variant {variant}" if variant else ""),
        "model": settings.get("model", {}).get("name", UNKNOWN),
        "software": software,
        "date": f"{date:%Y-%m-%d}",
    }
