"""Write files and folders atomically: they appear complete or not at all, whatever is killed when.

Beside a file or folder NAME there may be, for a moment or after a kill:

    .NAME.partial-TOKEN   half-written: deleted
    .NAME.old-TOKEN       what is being replaced: restored where NAME is missing, else deleted
    .NAME.gone-TOKEN      half-deleted: deleted, never restored

TOKEN is random, since processes of two containers may share host name and number. `settle` deals
with what killed processes have left; its caller holds the lock of the folder.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import Any

import yaml

from ehrr1.damage import damaged, reading
from ehrr1.locks import flock

LEFT = re.compile(r"\.(?P<name>.+)\.(?P<kind>partial|old|gone)-.+")
"""Names of what a killed process may leave behind."""

MOST_BRACKETS = 10_000
"""Brackets in a file of settings: each may be a level, and too many end the process."""

NO_FOLDERS = frozenset({errno.EINVAL, errno.ENOTSUP})
"""Error numbers of file systems that synchronise files and no folders."""


@contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` on success and is removed otherwise.

    It is in the same folder, and the body may create a file or a folder there. After a failure (a
    full disk, an interrupt) the previous content of `path` is unchanged. What is `durable` is on
    disk before it appears, and outlives a power failure; of a run all is, once it is finished
    (`runs.finish`).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, "partial")
    try:
        yield temporary
        if durable:
            sync(temporary)
        _swap(temporary, path)
        if durable:
            sync_folder(path.parent)
    finally:
        remove(temporary)


def _swap(new: Path, path: Path) -> None:
    """Put `new` in the place of `path`; a folder there is renamed first and deleted last."""
    if not path.is_dir():
        os.replace(new, path)
        return
    old = _beside(path, "old")
    path.rename(old)
    try:
        os.replace(new, path)
    except OSError:
        old.rename(path)
        raise
    remove(old)


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name.lstrip('.')}.{kind}-{token_hex(8)}")


def sync(path: Path) -> None:
    """Wait until a file, or a folder with all that is in it, is on disk."""
    if not path.is_dir():
        _sync_file(path)
        return
    for folder, _, names in os.walk(path):
        for name in names:
            file = Path(folder, name)
            if file.is_file() and not file.is_symlink():
                _sync_file(file)
        sync_folder(Path(folder))


def _sync_file(path: Path) -> None:
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on disk, where the file system can tell."""
    try:
        _sync_file(path)
    except OSError as error:
        if error.errno not in NO_FOLDERS:
            raise


def settle(folder: Path) -> None:
    """Restore or delete what killed processes have left in a folder and below it.

    No other process may be writing there.
    """
    for place, folders, names in os.walk(folder):
        left = [name for name in (*folders, *names) if LEFT.fullmatch(name)]
        for name in left:
            _settle(Path(place, name))
        folders[:] = [name for name in folders if name not in left]


def settle_beside(path: Path) -> None:
    """Restore or delete what killed processes have left beside `path` under its name."""
    for other in path.parent.glob(".*"):
        match = LEFT.fullmatch(other.name)
        if match and f"{match['name']}.".startswith(f"{path.name}."):
            _settle(other)


def _settle(left: Path) -> None:
    match = LEFT.fullmatch(left.name)
    assert match
    place = left.with_name(match["name"])
    if match["kind"] == "gone" and left.is_dir():
        _delete(left)
    elif match["kind"] == "old" and not place.exists():
        left.rename(place)
    else:
        remove(left)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait for the lock on the file `path` and hold it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        flock(file, wait=True)
        yield


@contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """Yield a new folder in the system's temporary one, which is deleted in the end.

    Those that killed processes have left are deleted first: their locks are free.
    """
    root = Path(tempfile.gettempdir())
    for lock in root.glob(f"{prefix}*.lock"):
        with suppress(BlockingIOError, FileNotFoundError, PermissionError), lock.open("w") as file:
            flock(file)
            _remove_scratch(lock)
    lock = root / f"{prefix}{token_hex(8)}.lock"
    with lock.open("x") as file:
        flock(file)
        folder = lock.with_suffix("")
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            _remove_scratch(lock)


def _remove_scratch(lock: Path) -> None:
    folder = lock.with_suffix("")
    if folder.exists():
        shutil.rmtree(folder)
    lock.unlink(missing_ok=True)


def remove(path: Path) -> None:
    """Delete a file or folder if it exists.

    A folder is renamed first, so that it is never half there.
    """
    if path.is_dir() and not path.is_symlink():
        gone = _beside(path, "gone")
        path.rename(gone)
        _delete(gone)
    else:
        path.unlink(missing_ok=True)


def _delete(gone: Path) -> None:
    """Delete a folder that was renamed; several processes may do so at the same time."""
    while gone.exists():
        with suppress(FileNotFoundError):
            shutil.rmtree(gone)


def delete_gone(folder: Path) -> None:
    """Delete what killed processes have left half-deleted in a folder; no lock is needed."""
    for left in folder.glob(".*.gone-*"):
        with suppress(PermissionError):  # another user's
            _delete(left)


def write_text(path: Path, text: str, durable: bool = False) -> None:
    """Write a text file in UTF-8, atomically."""
    with replacing(path, durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, durable: bool = False) -> None:
    """Write a value as JSON with sorted keys, atomically."""
    write_text(path, as_json(value), durable)


def as_json(value: Any) -> str:
    """Return a value as `write_json` writes it."""
    return json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def read_json(path: Path) -> Any:
    """Return the value in a JSON file. Raises DamagedError if there is none."""
    with reading(path, ValueError, RecursionError, FileNotFoundError):
        return json.loads(path.read_text(encoding="utf-8"))


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises DamagedError if there is none."""
    with reading(path, yaml.YAMLError, ValueError, RecursionError, FileNotFoundError):
        # many runs may be looked at: the parser in C is ten times as fast
        text = path.read_text(encoding="utf-8")
        if sum(map(text.count, "[{")) > MOST_BRACKETS:
            raise RecursionError
        found = yaml.load(text, Loader=yaml.CSafeLoader)
    if not isinstance(found, dict):
        raise damaged(path, "holds no settings")
    return found


def read_jsonl(path: Path, columns: Collection[str] = ()) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSON lines file.

    Raises DamagedError, which names the line, for one that is no object or lacks some of `columns`.
    """
    with reading(path, UnicodeDecodeError, FileNotFoundError), path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            yield json_line(path, number, line, columns)


def json_line(
    path: Path, number: int, line: str | bytes, columns: Collection[str] = ()
) -> dict[str, Any]:
    """Return the object in one line of a JSON lines file. Raises DamagedError if there is none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"has a line {number} that is no JSON") from error
    if not isinstance(found, dict) or not found.keys() >= set(columns):
        raise damaged(path, f"has a line {number} without {', '.join(columns) or 'an object'}")
    return found


def write_jsonl(path: Path, rows: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> int:
    """Write one JSON object per line, atomically, and return the number of lines."""
    count = 0
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def fingerprint(paths: Iterable[Path], *settings: str) -> str:
    """Return sixteen hexadecimal digits that depend on the contents of files and on `settings`."""
    digest = hashlib.blake2b("\0".join(settings).encode(), digest_size=8)
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()
