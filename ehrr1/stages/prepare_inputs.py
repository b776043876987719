"""What `stage=prepare` needs for inputs that bring samples of their own (`data=meds|release`)."""

import shutil
import tarfile
import zlib
from collections.abc import Collection
from datetime import timedelta
from pathlib import Path

import polars as pl
from rich.console import Console

from ehrr1.errors import UserError
from ehrr1.files import locked, replacing
from ehrr1.records import release
from ehrr1.records.meds_source import MedsFolder
from ehrr1.records.release_source import ReleaseFolder
from ehrr1.tasks import build
from ehrr1.tasks.index import Index
from ehrr1.tasks.label_files import label_index, read_labels
from ehrr1.tasks.release_index import read_release_index, release_index
from ehrr1.tasks.samples import SIMILAR

console = Console(stderr=True)

UNPACKED = ".release"
"""Where an archive is unpacked, below the folder of `prepare`."""


def by_labels(
    source: MedsFolder, splits: pl.DataFrame, window: timedelta, tasks: Collection[str]
) -> build.BuildIndex:
    """The index of MEDS that others made: its label files are the samples."""
    labels = read_labels(source.root / "task_labels", tasks)
    if labels.unknown:
        console.print(f"task_labels: no risk tasks of ours: {', '.join(labels.unknown)}")

    def index(rows: pl.DataFrame, names: pl.Series, parents: dict[str, pl.DataFrame]) -> Index:
        subjects = parents["patients"]["subject_id"]
        return label_index(rows, names, parents["admissions"], subjects, splits, window, labels)

    return index


def by_position(
    source: ReleaseFolder, splits: pl.DataFrame, tasks: Collection[str]
) -> build.BuildIndex:
    """The index of the release's folder: its own index files."""
    asked = read_release_index(source.root)
    number = source.shards.number(asked["subject_id"])

    def index(rows: pl.DataFrame, names: pl.Series, parents: dict[str, pl.DataFrame]) -> Index:
        subjects = parents["patients"]["subject_id"]
        shard = source.shards.number(subjects)[0]
        own = {s: source.positions[s] for s in subjects.to_list() if s in source.positions}
        return release_index(rows, names, asked.filter(number == shard), splits, own, tasks)

    return index


def unpacked(path: Path, folder: Path) -> Path:
    """The release's folder; a .tar.gz is unpacked into `folder` until the store is built."""
    if not path.name.endswith((".tar.gz", ".tgz")):
        return path
    target = folder / UNPACKED
    with locked(folder / ".release.lock"):  # shares may ask for it at the same time
        if not target.exists():
            unpack(path, target)
    found = next(target.rglob(release.FOLDER), None)
    return target if found is None else found.parent


def unpack(path: Path, target: Path) -> None:
    """Unpack a .tar.gz; UserError where it is none. Nothing can be written outside `target`."""
    try:
        with replacing(target) as temporary, tarfile.open(path, "r:gz") as archive:
            archive.extractall(temporary, filter="data")
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None and path.is_file():
            raise  # a full disk is no fault of the archive
        raise UserError(
            f"data.root={path}: it cannot be unpacked ({type(error).__name__}): fetch it again"
        ) from error


def keep_similar_items(root: Path, folder: Path) -> None:
    """The release's lists of similar items, for `stage=export` to choose candidates from."""
    lists = root / "cache" / "similar_item"
    if any(lists.glob("*.csv")):
        with replacing(folder / SIMILAR) as temporary:
            shutil.copytree(lists, temporary)
