"""The folders of runs, and the files in them that other runs read."""

from hashlib import sha256
from pathlib import Path
from typing import Any

from ehrr1.config.schema import Config
from ehrr1.damage import damaged
from ehrr1.files import read_json


def home(cfg: Config) -> Path:
    """Return the folder that holds the stages of this experiment and variant."""
    return Path(cfg.output_root) / cfg.name / (cfg.variant or "")


def folder_of(cfg: Config, stage: str) -> Path:
    """Return the folder where a stage's result is or will be."""
    folder = home(cfg) / stage
    return folder / export_name(cfg) if stage == "export" else folder


ROWS = ("parquet", "jsonl", "jsonl.zst", "rows")
"""Layouts of the rows of a split, with candidates."""

WHOLE = ("meds", "release")
"""Layouts of the whole cohort."""


def export_name(cfg: Config) -> str:
    """Return the name of an export's folder below `export/`, which differs between exports.

    It is the layout and, of rows and questions, the split, limit, tasks and wording: `meds`,
    `release`, `parquet-test`, `lm_eval-test`, `jsonl-all-100-emar-release` (a limit of 100 rows,
    the task `emar`, the wording `release`). Several tasks are named by a hash, and so is a folder
    of similar items.
    """
    own, tasks = cfg.export, cfg.data.tasks
    words: list[str] = [own.layout]
    if own.layout not in WHOLE:
        words += [own.split, *([str(own.limit)] if own.limit is not None else [])]
        if tasks is not None:
            words.append(
                tasks[0] if len(tasks) == 1 else f"{len(tasks)}tasks-{_hash(*sorted(tasks))}"
            )
        words += [cfg.wording] if cfg.wording not in (None, "file") else []
    if own.similar_items is not None and own.layout in (*ROWS, "release"):
        words.append(_hash(str(own.similar_items)))
    return "-".join(words)


def _hash(*words: str) -> str:
    return sha256(",".join(words).encode()).hexdigest()[:6]


def short(name: str) -> str:
    """Return the last part of a model's path or of its name on the hub."""
    return name.rstrip("/").split("/")[-1]


def is_finished(folder: Path) -> bool:
    """Return whether a run is finished: its metrics are written last."""
    return (folder / "metrics.json").exists()


def metrics_of(folder: Path) -> dict[str, Any]:
    """Read the metrics of a finished run, flat: name to number. Raises DamagedError for others."""
    path = folder / "metrics.json"
    found = read_json(path)
    if not isinstance(found, dict) or not all(
        isinstance(one, int | float) for one in found.values()
    ):
        raise damaged(path, "does not map names to numbers")
    return found


DECISION = "open.json"
"""File in which `stage=prepare` records whether its records are open, and why."""


def read_inputs(folder: Path) -> dict[str, str]:
    """Read which runs a run has read: name to fingerprint. Raises DamagedError for others."""
    path = folder / "inputs.json"
    found = read_json(path)
    if not isinstance(found, dict) or not all(isinstance(one, str) for one in found.values()):
        raise damaged(path, "does not map names to fingerprints")
    return found


def read_decision(path: Path) -> dict[str, Any]:
    """Read what `prepare` has decided: whether records are open (`open`), and `why`.

    Raises DamagedError for a file that says anything else.
    """
    found = read_json(path)
    if (
        not isinstance(found, dict)
        or not isinstance(found.get("open"), bool)
        or not isinstance(found.get("why"), str)
    ):
        raise damaged(path, "does not say whether the records are open, and why")
    return found


def decision(prepare: Path) -> dict[str, Any]:
    """Return what a finished `prepare` has decided (`records/openness.py`).

    Records that an earlier version prepared, which decided nothing, are closed.
    """
    path = prepare / DECISION
    if not path.exists():
        return {"open": False, "why": "version 0.1 did not decide"}
    return read_decision(path)


def data_is_open(prepare: Path) -> bool:
    """Return whether the records of a finished `prepare` may be shown to anyone.

    This is what `prepare` has decided, whatever a later command says.
    """
    return bool(decision(prepare)["open"])
