"""Location and unpacking of the parts of the release's folder.

The whole may be one `.tar.gz`; in the published folder `patients_ehr`, `cache/item_set` and
`cache/similar_item` are one archive each. Archives are unpacked into a working folder.
"""

import gzip
import tarfile
import zlib
from pathlib import Path

from ehrr1.errors import UserError
from ehrr1.files import locked, replacing
from ehrr1.records.reading import is_data
from ehrr1.records.release import layout

ARCHIVES = (".tar.gz", ".tgz")
CHUNK_BYTES = 1 << 20

MOST_RATIO = 200
"""Bytes of files per byte of an archive; tables of texts have 5 to 30."""
MOST_BYTES = 64 << 20
"""Bytes that an archive of any size may unpack to."""


def root_of(path: Path, work: Path) -> Path:
    """Return the folder that holds the release's parts; unpack an archive into `work`.

    Raises UserError for an archive that is truncated or damaged.
    """
    if not path.name.endswith(ARCHIVES):
        return path
    target = _unpacked(path, work / "whole")
    names = (layout.FOLDER, *(layout.FOLDER + end for end in ARCHIVES))
    found = (place for name in names for place in target.rglob(name) if _is_data(place, target))
    return next((place.parent for place in found), target)


def part(root: Path, name: str, work: Path) -> Path:
    """Return the folder `name` of the release's folder (for example `cache/similar_item`).

    If it is packed, it is unpacked into `work`. The returned path does not exist if there is
    neither a folder nor an archive.
    """
    archive = next((p for end in ARCHIVES if (p := root / f"{name}{end}").is_file()), None)
    if (root / name).is_dir() or archive is None:
        return root / name
    target = _unpacked(archive, work / name)
    ends = (".parquet", ".csv")
    files = (p for p in target.rglob("*") if p.suffix in ends and _is_data(p, target))
    return next((file.parent for file in files), target)


def _is_data(path: Path, below: Path) -> bool:
    return all(map(is_data, path.relative_to(below).parts))


def _unpacked(archive: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target.with_name(f".{target.name}.lock")):  # shards may run at the same time
        if not target.exists():
            unpack(archive, target)
    return target


def unpack(path: Path, target: Path) -> None:
    """Unpack a .tar.gz and check its CRC.

    Nothing can be written outside `target`. Raises UserError if the file is not such an archive, is
    damaged, contains no file, or becomes far larger than an archive of texts does, and OSError for
    errors of the file system such as a full disk.
    """
    try:
        with replacing(target) as temporary, gzip.open(path, "rb") as stream:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                extract(archive, temporary, MOST_BYTES + MOST_RATIO * path.stat().st_size)
            while stream.read(CHUNK_BYTES):  # tarfile stops before the CRC; gzip checks it here
                pass
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None and path.is_file():
            raise  # a full disk is not the archive's fault
        reason = str(error) if type(error) is tarfile.TarError else type(error).__name__
        raise UserError(
            f"data.root={path}: it cannot be unpacked ({reason}): fetch it again"
        ) from error


def extract(archive: tarfile.TarFile, target: Path, most: int) -> None:
    """Extract all files of an archive, which may have `most` bytes together, headers included.

    Raises tarfile.TarError for one that has none, or more.
    """
    files = size = 0
    for member in archive:
        files += member.isfile()
        size += member.size
        if size > most or archive.offset > most:
            raise tarfile.TarError(f"it holds more than {most:,} bytes, the most for its size")
        archive.extract(member, target, filter="data")
    if not files:
        raise tarfile.TarError("it holds no file")
