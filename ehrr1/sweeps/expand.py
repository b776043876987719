"""Expand the arguments of `sweep.py` to the runs of a sweep, with all checks."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from ehrr1.config.complaints import composing
from ehrr1.config.names import TRAINING
from ehrr1.config.schema import Config
from ehrr1.errors import UserError
from ehrr1.spelling import refuse_no_choice, spelled_out
from ehrr1.sweeps.grid import Planned, devices_of, plan
from ehrr1.sweeps.state import Entry

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
    overrides = [one for one in arguments if not one.startswith("name=")]
    if words := [one for one in overrides if "=" not in one and not one.startswith("~")]:
        raise UserError(
            f"{' '.join(words)}: neither an override (KEY=VALUE) nor one of status, logs, resume, "
            "cancel, compare, clean; see `python sweep.py --help`"
        )
    planned = planned_of(overrides)
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
        [entry(one, runs) for one in planned],
        root,
        settings | {"seed": cfg.seed, "parallel": told["parallel"]},
    )


def planned_of(overrides: Sequence[str]) -> list[Planned]:
    """Return the planned runs; Hydra's errors become UserError."""
    GlobalHydra.instance().clear()
    refuse_no_choice(overrides, CONF)
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return plan(with_grid(overrides), partial(spelled_out, swept=True))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(composing(error, Config)) from None


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
    if not name or "/" in name or name.startswith("."):
        raise UserError(f"name={name}: a plain word is needed, it becomes a folder of sweeps")
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


def entry(one: Planned, runs: dict[Path, str]) -> Entry:
    """Return the entry of a planned run; `runs` maps folders to names of runs."""
    needs = [runs[folder] for folder in one.inputs.values() if folder in runs]
    overrides = [o for o in one.overrides if not o.startswith("launcher")]
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
