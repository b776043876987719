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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import NoReturn

# Hydra otherwise prints its own errors and exits with 1; ours are one line and exit with 2.
os.environ.setdefault("HYDRA_FULL_ERROR", "1")

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ehrr1 import __version__
from ehrr1.command import TYPED, command, typed_as, with_stage
from ehrr1.config.complaints import composing
from ehrr1.config.help import help_text
from ehrr1.config.schema import Config, read
from ehrr1.errors import StoppedError, UserError, machine_fault, need_extra
from ehrr1.runs import MissingRunError, folder_of, metrics_of, short
from ehrr1.spelling import (
    NAMED_BY_CHOICE,
    fixed_keys,
    key_of,
    refuse_no_choice,
    spelled_out,
    variant_of,
)

CONF = Path(__file__).parent / "conf"
ROOT = "outputs"
"""`output_root` where it is not set."""
PLUGINS = {"hydra/launcher=slurm": "submitit", "hydra/sweeper=search": "optuna"}
EXPECTED = (
    *(UserError, OSError, HydraException, OmegaConfBaseException),
    *(yaml.YAMLError, UnicodeDecodeError),
)
"""Errors that a user can mend: one line, exit code 2."""
OF_DEFAULTS = ("Config group override", "Invalid defaults list", "Unsupported type in defaults")
"""How Hydra's bare ValueErrors about a list of defaults begin."""


def run_job(cfg: DictConfig) -> float | None:
    """Run the composed configuration; return what a search optimises."""
    try:
        config = read(cfg, HydraConfig.get().overrides.task)
        if config.variant is None:
            config.variant = own_variant(config)
        refuse_groups(config)
        from ehrr1.stages import execute

        execute(config)
        return searched(config)
    except StoppedError as error:
        left = "all saved; the same command resumes"
        if config.overwrite:
            left = "the run that overwrite=true was to replace is back in its place"
        print(f"{command()}: {error}, {left}", file=sys.stderr)
        sys.exit(error.exit_code)
    except MissingRunError as error:
        sys.exit(complain(error, f". The command: {with_stage(error.stage)}"))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the panics of libraries in Rust are no `Exception`
        # Hydra would print lines of its own about an exception that leaves its job.
        sys.exit(complain(error))


def compose_and_run(words: list[str]) -> None:
    """Compose the configuration that the command's words ask for, and run it.

    Hydra's own entry composes it twice, first to look for `hydra.mode`: a fifth of a second that
    only flags and Hydra's own settings need.
    """
    if any(word.startswith("-") or key_of(word).startswith("hydra") for word in words):
        hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")(run_job)()
        return
    hydra.initialize_config_dir(str(CONF), version_base="1.3")
    composer = GlobalHydra.instance().hydra
    assert composer is not None
    composer.run("config", run_job, [*words, f"hydra.mode={RunMode.RUN.name}"])


def refuse_groups(cfg: Config) -> None:
    """Raise UserError for a job of `-m` with several devices.

    A second process would replay the whole sweep, or hang.
    """
    from ehrr1 import parallel

    if HydraConfig.get().mode == RunMode.MULTIRUN and parallel.wanted(cfg.trainer) > 1:
        overrides = " ".join(HydraConfig.get().overrides.task)
        raise UserError(
            f"-m with trainer.devices={cfg.trainer.devices}, trainer.nodes={cfg.trainer.nodes}: "
            "Hydra's multirun cannot start groups of processes; use python sweep.py with the same "
            f"overrides (this job's: {overrides}), launcher=local or launcher=slurm"
        )


def searched(cfg: Config) -> float | None:
    """Return the value that a search by Hydra's Optuna sweeper optimises."""
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


def own_variant(cfg: Config) -> str:
    """Return the name of this run's folder below the experiment; empty for the plain experiment.

    It has the groups' choices and, of a job of `-m`, the settings that vary from job to job.
    """
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
    return "/".join(filter(None, [*names, varied]))


def main() -> None:
    """Complete the command for Hydra, and run it; errors that a user can correct are one line."""
    arguments = TYPED[:] = sys.argv[1:]
    if "--version" in arguments:  # Hydra's own option prints Hydra's version
        print(f"ehrr1 {__version__}")
        return
    swept = bool({"-m", "--multirun"} & set(arguments))
    sys.argv[1:] = spelled_out(arguments, swept)
    try:
        if {"-h", "--help"} & set(arguments):
            print(help_text(CONF, [one for one in sys.argv[1:] if "=" in one], typed_as()))
            return
        refuse_flags(sys.argv[1:])
        refuse_no_choice(sys.argv[1:], CONF)
        for plugin, package in PLUGINS.items():
            if plugin in sys.argv:
                need_extra(plugin, package, "sweeps")
        if swept:
            # a job knows its overrides, but not which of them vary
            fixed = ",".join(fixed_keys(sys.argv[1:]))
            sys.argv.append(f"hydra.job.config.override_dirname.exclude_keys=[{fixed}]")
            roots = [word.partition("=")[2] for word in arguments if key_of(word) == "output_root"]
            with no_trace_of_refused(Path([ROOT, *roots][-1])):
                compose_and_run(sys.argv[1:])
        else:
            compose_and_run(sys.argv[1:])
    except BrokenPipeError:  # the command's entry decides
        raise
    except EXPECTED as error:
        sys.exit(complain(error))
    except ValueError as error:
        if not str(error).startswith(OF_DEFAULTS):
            raise
        sys.exit(complain(UserError(f"{error}; it stands in a file of settings or was typed")))


def refuse_flags(words: list[str]) -> None:
    """Raise UserError for flags that do not exist, or lack their value, with the nearest one."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        unknown = message.partition("unrecognized arguments: ")[2].split()
        flags = [flag for action in parser._actions for flag in action.option_strings]
        near = get_close_matches(unknown[0], flags, 1, 0.7) if unknown else []
        meant = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"{message}; {meant}settings are written KEY=VALUE, `--help` lists them")

    parser.error = refuse  # type: ignore[method-assign]
    parser.parse_args(words)


@contextmanager
def no_trace_of_refused(root: Path) -> Iterator[None]:
    """Remove the folder that Hydra makes below `root` for a multirun, where a job is refused."""
    multirun = root / "multirun"
    new = [folder for folder in (multirun, root) if not folder.exists()]
    try:
        yield
    except (SystemExit, *EXPECTED):
        (multirun / "multirun.yaml").unlink(missing_ok=True)
        with suppress(OSError):  # a job that was not refused has made something
            for folder in new:
                folder.rmdir()
        raise


def complain(error: BaseException, remedy: str = "") -> int:
    """Print an error as one line on stderr, with `remedy` at its end.

    Returns the exit code of an error that a user can mend. Raises the error again if it is a bug.
    """
    message = str(error)
    if isinstance(error, yaml.YAMLError | UnicodeDecodeError):
        message = f"a file of settings (conf/, experiments/, --config-dir) is no YAML: {message}"
    elif isinstance(error, OSError) and message.startswith("Invalid loaded object"):
        message = f"a file of settings (conf/, experiments/, --config-dir) has none: {message}"
    elif (fault := machine_fault(error)) is not None:
        message = fault
    elif isinstance(error, HydraException | OmegaConfBaseException):
        message = composing(error, Config)
    elif not isinstance(error, UserError):
        raise error
    print(f"{command()}: " + " ".join(message.split()) + remedy, file=sys.stderr)
    return 2
