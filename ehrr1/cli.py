"""Compose one configuration and run one stage.

python run.py                                   the curriculum on a synthetic hospital
python run.py experiment=mimic_demo data.root=DIR
python run.py stage=rl model=8b                 one stage, another model
python run.py stage=infer model=DIR record=FILE.md question="..."
python run.py --help                            settings and their choices
python run.py --version
"""

import os
import sys
from pathlib import Path

# Hydra otherwise prints its own errors and exits with 1; ours are one line and exit with 2.
os.environ.setdefault("HYDRA_FULL_ERROR", "1")

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

from ehrr1 import __version__
from ehrr1.errors import StoppedError, UserError, cannot_write, need_extra
from ehrr1.runs import folder_of, metrics_of, short
from ehrr1.settings.spelling import NAMED_BY_CHOICE, fixed_keys, key_of, spelled_out, variant_of

CONF = Path(__file__).parent / "conf"
PLUGINS = {"hydra/launcher=slurm": "submitit", "hydra/sweeper=search": "optuna"}
EXPECTED = (UserError, OSError, HydraException, OmegaConfBaseException)


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def compose_and_run(cfg: DictConfig) -> float | None:
    from ehrr1.settings import check
    from ehrr1.stages import execute

    cfg = as_released(cfg)
    if cfg.variant is None:
        with open_dict(cfg):
            cfg.variant = own_variant(cfg)
    try:
        check(cfg)
        refuse_groups(cfg)
        execute(cfg)
        return searched(cfg)
    except StoppedError as error:
        left = "all saved; the same command resumes"
        if cfg.overwrite:
            left = "the run that overwrite=true was to replace is back in its place"
        print(f"{command()}: {error}, {left}", file=sys.stderr)
        sys.exit(error.exit_code)
    except EXPECTED as error:
        # Hydra would print lines of its own about an exception that leaves its job.
        sys.exit(complain(error))


def as_released(cfg: DictConfig) -> DictConfig:
    """A plan without an experiment is one of the released lengths and batches, not the demo's."""
    overrides = list(HydraConfig.get().overrides.task)
    if cfg.stage != "plan" or any(override.startswith("experiment=") for override in overrides):
        return cfg
    return hydra.compose("config", overrides=[*overrides, "experiment=released"])


def refuse_groups(cfg: DictConfig) -> None:
    """Raise UserError for a job of `-m` with several devices: a second process would replay the
    whole sweep, or hang."""
    from ehrr1 import parallel

    if HydraConfig.get().mode == RunMode.MULTIRUN and parallel.wanted(cfg.trainer) > 1:
        told = " ".join(HydraConfig.get().overrides.task)
        raise UserError(
            f"-m with trainer.devices={cfg.trainer.devices}, trainer.nodes={cfg.trainer.nodes}: "
            "Hydra's multirun cannot start groups of processes; use python sweep.py with the same "
            f"overrides (this job's: {told}), launcher=local or launcher=slurm"
        )


def searched(cfg: DictConfig) -> float | None:
    """What a search by Hydra's Optuna sweeper makes good."""
    if cfg.search.metric is None:
        return None
    stage = "eval" if cfg.stage == "curriculum" else cfg.stage
    metrics = metrics_of(folder_of(cfg, stage))
    if cfg.search.metric not in metrics:
        raise UserError(
            f"search.metric={cfg.search.metric}: stage={stage} has none; there are "
            f"{', '.join(list(metrics)[:20])}"
        )
    return float(metrics[cfg.search.metric])


def own_variant(cfg: DictConfig) -> str:
    """What tells this run from the experiment's plain one, so that it gets its own folder: the
    groups' choices and, of a job of `-m`, what varies from job to job."""
    job = HydraConfig.get()
    overrides, varied = list(job.overrides.task), ""
    if job.mode == RunMode.MULTIRUN:
        fixed = set(job.job.config.override_dirname.exclude_keys)
        varied = variant_of(one for one in overrides if key_of(one) not in fixed)
        overrides = [one for one in overrides if key_of(one) in fixed]
    groups = [group for group in NAMED_BY_CHOICE if any(key_of(one) == group for one in overrides)]
    if not groups:
        return varied  # composing once more takes a sixth of a second
    chosen = job.runtime.choices
    plain = hydra.compose(
        "config", overrides=[f"experiment={chosen['experiment']}"], return_hydra_config=True
    ).hydra.runtime.choices
    own = [group for group in groups if chosen[group] != plain[group]]
    # a model's folder (the choice `folder`) is told by its name
    names = [short(cfg.model.name) if g == "model" else chosen[g] for g in own]
    return "-".join(filter(None, [*names, varied]))


def main() -> None:
    if "--version" in sys.argv[1:]:  # Hydra's own tells Hydra's
        print(f"ehrr1 {__version__}")
        return
    sys.argv[1:] = spelled_out(sys.argv[1:])
    try:
        for plugin, package in PLUGINS.items():
            if plugin in sys.argv:
                need_extra(plugin, package, "sweeps")
        if {"-m", "--multirun"} & set(sys.argv):
            # jobs know all that they were told, not what of it varies
            told = ",".join(fixed_keys(sys.argv[1:]))
            sys.argv.append(f"hydra.job.config.override_dirname.exclude_keys=[{told}]")
        compose_and_run()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        sys.exit(complain(error))


def complain(error: Exception) -> int:
    """Print one line on stderr; returns the exit code of an error that a user can mend."""
    message = str(error)
    # Hydra's missing-configuration error is an OSError too
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        message = cannot_write(error)
    elif not isinstance(error, UserError):
        message = message.split("Config search path")[0].rstrip()
        message += "; `python run.py --help` lists the settings and their choices"
    print(f"{command()}: " + " ".join(message.split()), file=sys.stderr)
    return 2


def command() -> str:
    """What the user typed: `run.py`, or `ehrr1` where the package is installed."""
    name = Path(sys.argv[0]).name
    return "ehrr1" if name == "__main__.py" else name
