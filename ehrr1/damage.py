"""Files between stages that are damaged: one line that names the file, its stage, and the remedy.

Every finished run has a manifest, which lists what later stages read:

    manifest.json   stage; again: the command that makes a file again, by the first part of its
                    path ("" for all others); files: path -> bytes and digest (XXH3, 128 bits);
                    folders: those of which all files are listed; pending: the part of the run that
                    is being written anew, if one is

A file that was cut, doubled, emptied or removed has another size. A changed byte shows in the
digest, which takes as long as reading the file. XXH3 is twenty times as fast as BLAKE2b: it tells
damage, and not who wants to deceive, who could write another manifest.
"""

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from ehrr1.errors import UserError, machine_fault

MANIFEST = "manifest.json"

QUICK_BYTES = 256 * 2**20
"""Maximum that a quick check reads, of the smallest files: a tenth of a second on one core."""

OF_RUNS = (MANIFEST, "config.yaml", "metrics.json")
"""Files of which each run has one at least."""

METRICS = "metrics.json"
"""A file that is compared by a full check only: `rescore`, which mends it, must be able to read."""

LATER = frozenset({MANIFEST, METRICS, "README.md", "DATA_CARD.md"})
"""Files of a listed folder that are not listed with it.

README.md is the card of a model or an export, DATA_CARD.md that of a model's records: their user
completes them.
"""


class DamagedError(UserError):
    """A file that an earlier stage wrote is damaged or missing."""


@contextmanager
def reading(path: Path, *errors: type[BaseException], remedy: str | None = None) -> Iterator[None]:
    """Raise DamagedError, which names `path`, for the errors that its format's reader raises.

    An error of the disk itself, or missing memory, is none of the file. The cause is told by its
    type alone, since messages of readers may quote what they read. `remedy` of a file that no stage
    makes again.
    """
    try:
        yield
    except errors as error:
        of_the_file = (None, errno.EINVAL)  # the second: an empty file is mapped
        if isinstance(error, OSError) and error.errno not in of_the_file and path.exists():
            raise
        if machine_fault(error) is not None:
            raise
        what = f"cannot be read ({type(error).__name__})" if path.exists() else "is missing"
        raise damaged(path, what, remedy) from error


def damaged(path: Path, what: str, remedy: str | None = None) -> DamagedError:
    """Return the error for a damaged file of a run: who made it, and what makes it again."""
    folder = next(
        (one for one in path.parents if any((one / name).exists() for name in OF_RUNS)), None
    )
    if remedy is not None or folder is None:
        return DamagedError(f"{path} {what}: {remedy or 'restore a copy of it'}")
    if (folder / MANIFEST).exists():
        made = read_manifest(folder)
        again = made["again"]
        command = again.get(path.relative_to(folder).parts[0]) or again[""]
        return DamagedError(
            f"{path} {what}: stage={made['stage']} made it; restore a copy of it, or make it again "
            f"by the command: {command}"
        )
    if (folder / "metrics.json").exists():
        return DamagedError(
            f"{path} {what}: stage={folder.name} made it; restore a copy of it, or run that stage "
            "again with the same settings and overwrite=true"
        )
    return DamagedError(
        f"{path} {what}: stage={folder.name}, which is not finished, made it; restore a copy of "
        "it, or begin again with overwrite=true"
    )


def manifest(
    folder: Path, stage: str, names: Sequence[str], again: Mapping[str, str]
) -> dict[str, Any]:
    """Return the manifest of the files and folders `names` of a run, `again` as described above.

    Hidden files and names that are not there are left out.
    """
    files = sorted({path for name in names for path in _files(folder / name)})
    listed = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "digest": digest(path)}
        for path in files
    }
    folders = [name for name in names if (folder / name).is_dir()]
    return {"stage": stage, "again": dict(again), "files": listed, "folders": folders}


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
    for place, folders, names in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (
            Path(place, name) for name in names if not name.startswith(".") and name not in LATER
        )


def digest(path: Path) -> str:
    """Return the digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def digest_of(content: bytes) -> str:
    """Return the digest of a file with this content."""
    return xxhash.xxh3_128(content).hexdigest()


def digest_beside(path: Path) -> Path:
    """Return the file with the digest of a file that no manifest lists and that runs share."""
    return path.with_suffix(".digest")


def is_whole(path: Path) -> bool:
    """Return whether a file has its digest beside it."""
    beside = digest_beside(path)
    return beside.exists() and beside.read_text(encoding="utf-8") == digest(path)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a run. Raises DamagedError for one that is none."""
    path = folder / MANIFEST
    remedy = f"restore a copy of it, or run stage={folder.name} again with overwrite=true"
    errors = (ValueError, TypeError, KeyError, AttributeError, RecursionError)
    with reading(path, *errors, remedy=remedy):
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for one in found["files"].values():
            int(one["bytes"]), str(one["digest"])
        str(found["stage"]), str(found["again"][""])
    return found


def check(folder: Path, full: bool = False, below: str = "") -> None:
    """Raise DamagedError for a file of a finished run that is not as its stage has left it.

    Sizes are always compared, digests of the smallest files up to `QUICK_BYTES` in sum, with `full`
    those of all; `full` also finds files that the stage did not write, and changed metrics. `below`
    limits the check to one folder of the run. A run of version 0.1 has no manifest, and is not
    checked.
    """
    if not (folder / MANIFEST).exists():
        return
    made = read_manifest(folder)
    if (pending := made.get("pending")) is not None and below in ("", pending):
        raise damaged(folder / pending, "is being written anew, or a kill has ended that")
    listed = {
        folder / name: one
        for name, one in made["files"].items()
        if f"{name}/".startswith(f"{below}/" if below else "") and (full or name != METRICS)
    }
    for path, one in listed.items():
        if not path.is_file():
            raise damaged(path, "is missing")
        if (size := path.stat().st_size) != one["bytes"]:
            raise damaged(path, f"has {size:,} bytes, and {one['bytes']:,} were written")
    chosen, room = [], QUICK_BYTES
    for path, one in sorted(listed.items(), key=lambda entry: entry[1]["bytes"]):
        room -= one["bytes"]
        if full or room >= 0:
            chosen.append(path)
    for path in chosen:
        if digest(path) != listed[path]["digest"]:
            raise damaged(path, "is not as it was written (its checksum differs)")
    for name in made.get("folders", ()) if full and not below else ():
        for path in _files(folder / name):
            if path not in listed:
                remedy = "delete it, or move it out of the folder of the run"
                raise damaged(path, f"was not written by stage={made['stage']}", remedy)
