"""Expand the arguments of `sweep.py` to the runs of a sweep, with all checks."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from ehrr1.config.complaints import composing
from ehrr1.config.names import TRAINING
from ehrr1.config.schema import Config
from ehrr1.errors import UserError
from ehrr1.spelling import refuse_no_choice, spelled_out
from ehrr1.sweeps.grid import plan
from ehrr1.sweeps.road import Planned, devices_of
from ehrr1.sweeps.state import Entry

CONFIG_DIR = "--config-dir="
CONF = Path(__file__).resolve().parents[1] / "conf"


@dataclass(frozen=True)
class Begun:
    """A sweep as requested by the arguments of `sweep.py`.

    overrides: without name, launcher and output_root. entries: the runs. search: settings of a
    search.
    """

    name: str
    launcher: dict[str, Any]
    overrides: list[str]
    entries: list[Entry]
    root: Path
    search: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Return the sweep's folder."""
        return self.root / "sweeps" / self.name


def begun(arguments: Sequence[str]) -> Begun:
    """Return the sweep that the arguments request, with everything checked.

    Raises UserError for everything that cannot work, before anything is submitted.
    """
    folders = [one for one in arguments if one.startswith(CONFIG_DIR)]
    overrides = [one for one in arguments if not one.startswith(("name=", CONFIG_DIR))]
    if words := [one for one in overrides if "=" not in one and not one.startswith("~")]:
        raise UserError(
            f"{' '.join(words)}: neither an override (KEY=VALUE) nor one of status, logs, resume, "
            "cancel, compare, clean; see `python sweep.py --help`"
        )
    planned = planned_of(overrides, folders)
    if not planned:
        raise UserError("there is nothing to run: no override names a stage")
    roots = {Path(one.cfg.output_root) for one in planned}
    launchers = {str(one.cfg.launcher): one.cfg.launcher for one in planned}
    if len(roots) > 1 or len(launchers) > 1:
        raise UserError("output_root, launcher: one for all runs of a sweep")
    root, launcher = roots.pop(), next(iter(launchers.values()))
    runs = {one.folder: str(one.folder.relative_to(root)) for one in planned}
    cfg = planned[0].cfg
    settings, told = cfg.search.plain(), launcher.plain()
    return Begun(
        name_of(arguments),
        told,
        own(arguments),
        [entry(one, runs, folders) for one in planned],
        root,
        settings | {"seed": cfg.seed, "parallel": told["parallel"]},
    )


def planned_of(overrides: Sequence[str], folders: Sequence[str] = ()) -> list[Planned]:
    """Return the planned runs; `folders` are flags `--config-dir=DIR`.

    Raises UserError, also for Hydra's errors.
    """
    GlobalHydra.instance().clear()
    refuse_no_choice(overrides, CONF)
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            for folder in folders:
                add_config_dir(folder.removeprefix(CONFIG_DIR))
            return plan(with_grid(overrides), partial(spelled_out, swept=True))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(composing(error, Config)) from None


def whole_flags(arguments: Sequence[str]) -> list[str]:
    """Write `--config-dir DIR`, as Hydra takes it, in one word and with the whole path.

    Raises UserError for a folder that is not there and for other flags.
    """
    found: list[str] = []
    words = iter(arguments)
    for word in words:
        flag, equals, value = word.partition("=")
        if flag in ("--config-dir", "-cd"):
            folder = Path(value if equals else next(words, ""))
            if not folder.is_dir() or folder == Path():
                raise UserError(f"--config-dir={folder}: no such folder; name one with settings")
            found.append(f"{CONFIG_DIR}{folder.resolve()}")
        elif flag.startswith("-"):
            raise UserError(
                f"{word}: sweep.py takes --dry-run, --config-dir=DIR and overrides (KEY=VALUE)"
            )
        else:
            found.append(word)
    return found


def add_config_dir(folder: str) -> None:
    """Let Hydra search a folder behind conf/, as `--config-dir` does in run.py."""
    path = create_config_search_path(str(CONF))
    path.prepend("command-line", f"file://{folder}", "schema")  # which must be last
    GlobalHydra.instance().clear()
    Hydra.create_main_hydra2(task_name="app", config_search_path=path)


def own(arguments: Sequence[str]) -> list[str]:
    """Return the arguments without name, launcher and output_root, which do not affect the runs."""
    elsewhere = ("launcher", "output_root=", "name=")
    return [one for one in arguments if not one.startswith(elsewhere)]


def name_of(arguments: Sequence[str]) -> str:
    """Return the sweep's name: `name=NAME`, else a hash of the arguments.

    The same arguments therefore have the same name. Raises UserError for an unsuitable name.
    """
    given = [one.partition("=")[2] for one in arguments if one.startswith("name=")]
    name = (
        given[-1] if given else sha256("\n".join(sorted(own(arguments))).encode()).hexdigest()[:8]
    )
    if not re.fullmatch(r"[\w-][\w.-]*", name):
        raise UserError(
            f"name={name}: it becomes a folder of sweeps and a job's name; use letters, digits, "
            "`_`, `-` and `.`, not first"
        )
    return name


def with_grid(overrides: Sequence[str]) -> list[str]:
    """Return the overrides after those of the experiment's own grid (`hydra.sweeper.params`)."""
    experiment = [one for one in overrides if one.startswith("experiment=")]
    if any("," in one or "(" in one for one in experiment):
        return list(overrides)  # several experiments: their own grids are not used
    whole = compose("config", overrides=experiment, return_hydra_config=True)
    params = whole.hydra.sweeper.params or {}
    given = {one.partition("=")[0] for one in overrides}
    return [f"{key}={value}" for key, value in params.items() if key not in given] + list(overrides)


def entry(one: Planned, runs: dict[Path, str], folders: Sequence[str] = ()) -> Entry:
    """Return the entry of a planned run; `runs` maps folders to names of runs."""
    needs = [runs[folder] for folder in one.inputs.values() if folder in runs]
    overrides = [*folders, *(o for o in one.overrides if not o.startswith("launcher"))]
    job = resources(one.cfg, one.stage)
    if one.stage in TRAINING and job and one.cfg.trainer.devices == "auto":
        overrides.append(f"trainer.devices={job['tasks_per_node']}")
    return Entry(runs[one.folder], one.stage, str(one.folder), overrides, needs, one.settings, job)


def resources(cfg: Config, stage: str) -> dict[str, Any]:
    """Return the SLURM resources of one run.

    Stages that train in a group have the nodes and tasks of `trainer`, one task per device; others
    have one task. Raises UserError if tasks and GPUs per node differ.
    """
    if cfg.launcher.name == "local":
        return {}
    job = cfg.launcher.plain()
    job |= job.pop("stages").get(stage, {})
    job |= {"nodes": 1, "tasks_per_node": 1}
    if stage in TRAINING:
        tasks = int(devices_of(cfg, stage))
        if job["gpus_per_node"] and tasks != job["gpus_per_node"]:
            raise UserError(
                f"trainer.devices={tasks}, launcher.gpus_per_node={job['gpus_per_node']}: a task "
                "has one GPU; make them equal, or set trainer.devices=auto"
            )
        job |= {"nodes": int(cfg.trainer.nodes), "tasks_per_node": tasks}
    return job
