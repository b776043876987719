"""The folder of a run while a stage works in it: locked, described, finished or resumed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ehrr1.config.schema import Config
from ehrr1.errors import UserError
from ehrr1.files import remove, write_json, write_text
from ehrr1.locks import flock
from ehrr1.runs.catalog import ALWAYS_AGAIN
from ehrr1.runs.compare import differences, fingerprint
from ehrr1.runs.environment import environment
from ehrr1.runs.paths import folder_of, is_finished
from ehrr1.runs.search import find_inputs


class FolderInUseError(UserError):
    """Another process works in the folder of a run."""


@dataclass
class Run:
    """One stage's folder while the stage works in it."""

    folder: Path
    stage: str
    inputs: dict[str, Path] = field(default_factory=dict)
    resuming: bool = False

    def input(self, stage: str) -> Path:
        """Return the folder of an earlier, finished stage."""
        return self.inputs[stage]


@contextmanager
def opened(cfg: Config, stage: str) -> Iterator[Run | None]:
    """Lock and yield the run folder of `stage`; yield None where the run is finished already.

    With `overwrite=true` the earlier run is put aside and comes back if the new one fails before
    it is finished. Raises UserError for a folder made with other settings, or in use by
    another process.
    """
    folder = folder_of(cfg, stage)
    inputs = find_inputs(cfg, stage)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f".{folder.name}.lock"), folder):
        previous = folder.with_name(f".{folder.name}.previous")
        if previous.exists():
            remove(folder)
            previous.rename(folder)
        begun = (folder / "config.yaml").exists()
        if begun and not cfg.overwrite and stage not in ALWAYS_AGAIN:
            _refuse_other_settings(cfg, stage, folder, inputs)
            if is_finished(folder):
                yield None
                return
        elif folder.exists():
            folder.rename(previous)
        run = Run(folder, stage, inputs, resuming=begun and folder.exists())
        _describe(cfg, run)
        try:
            yield run
        except BaseException as error:
            # an audit that finds a leak fails when it is done: its files say where
            if is_finished(folder):
                remove(previous)
                raise
            # what a wrong setting or file left behind must not refuse the corrected command
            if previous.exists() or (isinstance(error, UserError) and not run.resuming):
                remove(folder)
            if previous.exists():
                previous.rename(folder)
            raise
        remove(previous)


@contextmanager
def joined(cfg: Config, stage: str, member: int) -> Iterator[Run | None]:
    """Yield the folder of a stage that several processes make together; this one is `member`.

    Yields None where the run is finished. Raises UserError as `opened` does; nothing is removed.
    """
    folder = folder_of(cfg, stage)
    inputs = find_inputs(cfg, stage)
    folder.parent.mkdir(parents=True, exist_ok=True)
    own = folder.with_name(f".{folder.name}-{member}.lock")
    with (
        _locked(folder.with_name(f".{folder.name}.lock"), folder, shared=True),
        _locked(own, folder),
    ):
        begun = (folder / "config.yaml").exists()
        if begun:
            _refuse_other_settings(cfg, stage, folder, inputs)
        if is_finished(folder):
            yield None
            return
        run = Run(folder, stage, inputs, resuming=begun)
        _describe(cfg, run)
        yield run


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock a run's folder. Raises FolderInUseError where another process works in it."""
    with _locked(folder.with_name(f".{folder.name}.lock"), folder):
        yield


def finish(run: Run, metrics: dict[str, Any]) -> None:
    """Write `metrics.json`, which marks the run as finished. Values are numbers, names flat."""
    # again: only now the libraries that computed them are loaded, with the kernels they chose
    write_text(run.folder / "environment.txt", environment())
    write_json(run.folder / "metrics.json", metrics)


@contextmanager
def _locked(lock: Path, folder: Path, shared: bool = False) -> Iterator[None]:
    with lock.open("w") as file:
        try:
            flock(file, shared=shared)
        except BlockingIOError:
            raise FolderInUseError(
                f"{folder} is in use by another process: wait for it, or set variant=NAME"
            ) from None
        yield


def _describe(cfg: Config, run: Run) -> None:
    """Write what this run is made from, `config.yaml` last: it marks the run as begun."""
    run.folder.mkdir(parents=True, exist_ok=True)
    fingerprints = {name: fingerprint(folder) for name, folder in run.inputs.items()}
    write_json(run.folder / "inputs.json", fingerprints)
    write_text(run.folder / "environment.txt", environment())
    settings = yaml.safe_dump(cfg.plain(), sort_keys=False, allow_unicode=True)
    write_text(run.folder / "config.yaml", settings)


def _refuse_other_settings(cfg: Config, stage: str, folder: Path, inputs: dict[str, Path]) -> None:
    """Raise UserError if the begun run in `folder` was made with other settings or inputs."""
    if told := differences(cfg, stage, folder, inputs):
        raise UserError(
            f"{folder} was made with other settings ({'; '.join(told)}): "
            "set overwrite=true to replace it, or variant=NAME to keep both"
        )
