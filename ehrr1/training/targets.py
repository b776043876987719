"""Classes and functions that settings name by their path: loggers, callbacks, optimizers, losses.

Settings name code, and so does `rl.rewards`: whoever writes a configuration can run code of theirs.
What is named must be of the kind that the setting asks for, and arguments are values, never objects
that are created in turn.
"""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from pytorch_lightning import Callback
from pytorch_lightning.loggers import Logger
from torch.optim import Optimizer

from ehrr1.config.schema import Config
from ehrr1.errors import UserError

Targets = Mapping[str, Mapping[str, Any]]
"""Name -> `{_target_: module.Class, argument: value}`."""

PACKAGES = {"wandb": "wandb", "mlflow": "mlflow", "comet": "comet-ml", "neptune": "neptune"}
"""Modules of Lightning's loggers that need a package -> what pip calls it."""

FOLDERS = ("save_dir", "dirpath")
"""Arguments of Lightning's loggers and callbacks that are folders."""


def find(setting: str, path: str) -> Any:
    """Import the class or function `path` (`module.name`), also from the current folder.

    Raises UserError that names `setting`.
    """
    place, _, name = path.rpartition(".")
    here = str(Path.cwd())
    if here not in sys.path:  # Python adds the folder of run.py, not the one it is called from
        sys.path.append(here)
    try:
        module = importlib.import_module(place)
    except (ImportError, SyntaxError) as error:
        raise UserError(
            f"{setting}: {place} cannot be imported ({error}); it is looked for in {here}, on "
            "PYTHONPATH and among what is installed"
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        raise UserError(f"{setting}: {place} has no function {name}; define it there")
    return found


def create(
    setting: str, target: Mapping[str, Any], kind: type[Any], *first: Any, **others: Any
) -> Any:
    """Return a new object of the class that `target` names, which must be a subclass of `kind`.

    `first` and `others` are arguments besides those of `target`. Raises UserError that names
    `setting` if the class cannot be imported, is of another kind, or refuses its arguments.
    """
    check_target(setting, target, kind, *first, **others)
    given = {name: value for name, value in target.items() if name != "_partial_"}
    try:
        return instantiate(given, *first, **others, _recursive_=False, _convert_="all")
    except InstantiationException as error:
        raise UserError(f"{setting}: {error.__cause__ or error}") from error


def check_target(
    setting: str, target: Mapping[str, Any], kind: type[Any], *first: Any, **others: Any
) -> None:
    """Raise UserError if `create` with these arguments would, without calling the class."""
    path = target["_target_"]
    found = find(f"{setting}._target_={path}", path)
    if not (inspect.isclass(found) and issubclass(found, kind)):
        raise UserError(f"{setting}._target_={path}: it is no {kind.__module__}.{kind.__name__}")
    needs = found.__module__.rpartition(".")[2]
    if needs in PACKAGES and find_spec(PACKAGES[needs].replace("-", "_")) is None:
        raise UserError(f"{setting}: {path} needs a package: pip install {PACKAGES[needs]}")
    arguments = {name: value for name, value in target.items() if not name.startswith("_")}
    try:
        inspect.signature(found).bind(*first, **arguments, **others)
    except TypeError as error:
        raise UserError(f"{setting}: {found.__name__}: {error}") from error


def make_loggers(targets: Targets, folder: Path, start: int) -> list[Logger]:
    """Return the loggers of the section `logger`; a `save_dir` is below the run's `folder`.

    From TensorBoard's curves the steps after `start`, which a stopped run has lost, are removed.
    """
    return [
        create(f"logger.{name}", _below(folder, target), Logger, **_purged(target, start))
        for name, target in targets.items()
    ]


def _purged(target: Mapping[str, Any], start: int) -> dict[str, int]:
    tensorboard = target["_target_"].endswith(".TensorBoardLogger")
    return {"purge_step": start + 1} if tensorboard else {}


def make_callbacks(targets: Targets, folder: Path) -> list[Callback]:
    """Return the callbacks of the section `callbacks`; a `dirpath` is below the run's `folder`."""
    return [
        create(f"callbacks.{name}", _below(folder, target), Callback)
        for name, target in targets.items()
    ]


def _below(folder: Path, target: Mapping[str, Any]) -> dict[str, Any]:
    places = {name: str(folder / target[name]) for name in FOLDERS if target.get(name) is not None}
    return {**target, **places}


def wrong_targets(cfg: Config, stage: str) -> list[str]:
    """Return a line for each class or function of a training stage that cannot be used."""
    settings = cfg.training(stage)
    loss = {"rl.loss": cfg.rl.loss} if stage == "rl" else {"loss.function": cfg.loss.function}
    functions = {f"{stage}.schedule": settings.schedule, **loss}
    checks: list[Callable[[], object]] = [
        partial(find, f"{setting}={path}", path)
        for setting, path in functions.items()
        if path is not None and "." in path  # words are ours
    ]
    for section, kind in (("logger", Logger), ("callbacks", Callback)):
        checks += [
            partial(check_target, f"{section}.{name}", target, kind)
            for name, target in cfg.of(section).items()
        ]
    if isinstance(settings.optimizer, dict):
        checks.append(partial(_check_optimizer, stage, settings.optimizer))
    problems = []
    for check in checks:
        try:
            check()
        except UserError as error:
            problems.append(str(error))
    return problems


def _check_optimizer(stage: str, target: Mapping[str, Any]) -> None:
    given = {"lr": 1e-3, "weight_decay": 0.0}
    for name in given.keys() & target.keys():
        raise UserError(f"{stage}.optimizer.{name}={target[name]}: set {stage}.{name} instead")
    check_target(f"{stage}.optimizer", target, Optimizer, [], **given)
