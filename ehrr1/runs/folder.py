"""The folder of a run while a stage works in it: locked, described, finished or resumed."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ehrr1.config.schema import Config
from ehrr1.damage import MANIFEST, METRICS, DamagedError, check, digest_of, manifest, read_manifest
from ehrr1.errors import UserError
from ehrr1.files import (
    as_json,
    remove,
    settle,
    settle_beside,
    sync,
    sync_folder,
    write_json,
    write_text,
)
from ehrr1.locks import discard, open_locked
from ehrr1.runs.catalog import ALWAYS_AGAIN, READ_LATER
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
    another process, and DamagedError for a damaged input.
    """
    folder = folder_of(cfg, stage)
    inputs = find_inputs(cfg, stage)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with held(folder):
        previous = _previous(folder)
        begun = (folder / "config.yaml").exists()
        stays = begun and not cfg.overwrite and stage not in ALWAYS_AGAIN
        if stays:
            _refuse_other_settings(cfg, stage, folder, inputs)
            if is_finished(folder):
                yield None
                return
        check_inputs(cfg, inputs)
        if folder.exists() and not stays:
            folder.rename(previous)
        run = Run(folder, stage, inputs, resuming=stays)
        _describe(cfg, run)
        try:
            yield run
        except BaseException as error:
            # an audit that finds a leak fails when it is done: its files say where
            if is_finished(folder):
                remove(previous)
                raise
            # what a wrong setting or file left behind must not refuse the corrected command
            refused = isinstance(error, UserError) and not isinstance(error, DamagedError)
            if previous.exists() or (refused and not run.resuming):
                remove(folder)
            if previous.exists():
                previous.rename(folder)
            raise
        remove(previous)


def _previous(folder: Path) -> Path:
    """Return where the run in `folder` waits while another one is made in its place."""
    return folder.with_name(f".{folder.name}.previous")


@contextmanager
def joined(cfg: Config, stage: str, member: int) -> Iterator[Run | None]:
    """Yield the folder of a stage that several processes make together; this one is `member`.

    Yields None where the run is finished. Raises UserError as `opened` does; nothing is removed.
    """
    folder = folder_of(cfg, stage)
    inputs = find_inputs(cfg, stage)
    folder.parent.mkdir(parents=True, exist_ok=True)
    own = folder.with_name(f".{folder.name}-{member}.lock")
    if _previous(folder).exists():
        with suppress(FolderInUseError), held(folder):
            pass
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
        check_inputs(cfg, inputs)
        run = Run(folder, stage, inputs, resuming=begun)
        _describe(cfg, run)
        yield run


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock a run's folder, and finish what a killed process was replacing there.

    Raises FolderInUseError where another process works in it.
    """
    with _locked(folder.with_name(f".{folder.name}.lock"), folder):
        previous = _previous(folder)
        if previous.exists() and is_finished(folder):
            remove(previous)  # the new run was complete when the process was killed
        elif previous.exists():
            remove(folder)
            previous.rename(folder)
        settle_beside(folder)
        settle(folder)
        yield


def check_inputs(cfg: Config, inputs: Mapping[str, Path]) -> None:
    """Raise DamagedError for a damaged file of a finished run that is to be read."""
    for folder in inputs.values():
        if any(folder.glob(".*.old-*")):  # a process was killed while it replaced hf/
            with suppress(FolderInUseError, PermissionError), held(folder):
                pass
        check(folder, cfg.check == "full")


def finish(run: Run, metrics: dict[str, Any], again: Mapping[str, str] | None = None) -> None:
    """Write `metrics.json`, which marks the run as finished. Values are numbers, names flat.

    All else is on disk by then, so that neither a kill nor a power failure leaves a finished run
    with half of its files. `again` are the commands that make damaged files again, as in the
    manifest.
    """
    # again: only now the libraries that computed them are loaded, with the kernels they chose
    write_text(run.folder / "environment.txt", environment())
    names = ("config.yaml", "inputs.json", *READ_LATER.get(run.stage, ()))
    listed = manifest(run.folder, run.stage, names, {"": ""} | dict(again or {}))
    content = as_json(metrics).encode()
    listed["files"][METRICS] = {"bytes": len(content), "digest": digest_of(content)}
    write_json(run.folder / MANIFEST, listed)
    sync(run.folder)
    sync_folder(run.folder.parent)
    write_json(run.folder / METRICS, metrics, durable=True)


def rewrite_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    """Write the metrics of a finished run anew, and their digest."""
    write_json(folder / METRICS, metrics)
    if (folder / MANIFEST).exists():
        made = read_manifest(folder)
        own = manifest(folder, made["stage"], [METRICS], made["again"])
        write_json(folder / MANIFEST, made | {"files": made["files"] | own["files"]})


@contextmanager
def rewriting(folder: Path, name: str, again: str) -> Iterator[None]:
    """Let the body write `name` of a run anew; whoever reads the run meanwhile is refused.

    So is whoever reads it after a kill in between, by the command `again`, which makes it again. If
    the body fails, the manifest is as before, and tells what was damaged.
    """
    if not (folder / MANIFEST).exists():
        yield
        return
    made = read_manifest(folder)
    commands = made["again"] | {name: again}
    write_json(folder / MANIFEST, made | {"again": commands, "pending": name}, durable=True)
    try:
        yield
    except BaseException:
        write_json(folder / MANIFEST, made)
        raise
    made = read_manifest(folder)  # the body may have written metrics
    others = {
        file: one for file, one in made["files"].items() if not f"{file}/".startswith(f"{name}/")
    }
    own = manifest(folder, made["stage"], [name], commands)
    write_json(folder / MANIFEST, own | {"files": others | own["files"]}, durable=True)


@contextmanager
def _locked(lock: Path, folder: Path, shared: bool = False) -> Iterator[None]:
    """Hold a lock file of a run's folder; it goes with the folder of a run that is refused."""
    try:
        file = open_locked(lock, shared=shared)
    except BlockingIOError:
        raise FolderInUseError(
            f"{folder} is in use by another process: wait for it, or set variant=NAME"
        ) from None
    with file:
        try:
            yield
        finally:
            if not folder.exists():
                discard(file, lock)


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
