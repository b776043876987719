"""One record for inference: a text, a patient of a prepared store, or one of a MEDS dataset."""

import re
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl

from ehrr1.errors import UserError
from ehrr1.files import scratch
from ehrr1.records.events import Event
from ehrr1.records.markdown import events_of
from ehrr1.records.meds.source import MedsFolder
from ehrr1.records.reading import READ_ERRORS, data_files
from ehrr1.records.shard_buffer import Spool
from ehrr1.records.source import Shards
from ehrr1.records.store import Shard, Store, read_all, shard_folder, write_shard, write_shards
from ehrr1.records.store_schema import NEVER
from ehrr1.tasks.build import of_shard
from ehrr1.tasks.context import EPOCH, MICROSECOND, context_events
from ehrr1.tasks.samples import Sample
from ehrr1.tasks.stays import stays_in_turn

_CLOSE_HEADING = re.compile(r"(?<!\n)\n(?=## .+ \[)")
_PARAGRAPHS = re.compile(r"\n\s*\n")


def text_events(text: str) -> list[Event]:
    """Return the events of a record that is a text, oldest first.

    With headings (`## Name [time]`) it is Markdown as `records.markdown` writes it. Any other text
    is split into paragraphs, of which the first are dropped if the text is too long. Raises
    UserError for an empty text.
    """
    text = text.replace("\r\n", "\n").strip()
    if not text:
        raise UserError("record: it is empty; give a record as Markdown or as plain text")
    if re.search(r"^## ", text, re.MULTILINE):
        return events_of(_CLOSE_HEADING.sub("\n\n", text))
    return [Event("", None, None, (), (), part) for part in _PARAGRAPHS.split(text)]


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises UserError if it cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"record={path}: {error.strerror}; name a readable file") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"record={path}: it is no UTF-8 text (byte {error.start}); save the record as Markdown"
        ) from error


def patient_events(
    store: Store, subject_id: int, time: datetime | None, hours: float, inclusive: bool = True
) -> list[Event]:
    """Return what was known of a patient at `time`, as in training and evaluation.

    The events are those of the `hours` before `time` and a preamble of earlier ones; without a time
    they are the whole record. With `inclusive`, what became known at `time` itself is included.
    Raises UserError for an unknown patient, and if nothing was known.
    """
    try:
        rows, patient = store.find(subject_id)
    except KeyError as error:
        raise UserError(f"subject_id: there is no such patient in {store.folder}") from error
    known = rows.available_time[patient.first : patient.last]
    known = known[known < NEVER]
    first = datetime.min
    if time is None:
        if not len(known):
            raise UserError("subject_id: there is nothing in this patient's record")
        time = EPOCH + int(known.max()) * MICROSECOND
    else:
        reach = timedelta(hours=hours)
        first = time - reach if time - datetime.min > reach else datetime.min
    cut = Sample(
        *("", subject_id, None, None, "", "", time, "", ()),
        window_start=first,
        inclusive=inclusive,
        current_hadm=_admission(rows, subject_id, time, inclusive),
    )
    events = context_events(store, cut)
    if len(events) == 1:  # demographics only
        raise UserError(f"time: nothing was known of this patient in the {hours} h before it")
    return events


def _admission(rows: Shard, subject_id: int, time: datetime, inclusive: bool) -> int | None:
    """Return the stay that had begun and was not over, or None (as in `tasks.index`)."""
    admissions = rows.parents.get("admissions")
    if admissions is None:
        return None
    stays = stays_in_turn(admissions.filter(pl.col("subject_id") == subject_id))
    begun = pl.col("by") <= time if inclusive else pl.col("after") < time
    over = (pl.col("over") < time).fill_null(False)
    own = stays.filter(begun & ~over)
    return own["in_progress"].item() if own.height else None


def meds_events(
    source: Path, subject_id: int, time: datetime | None, hours: float, inclusive: bool = True
) -> list[Event]:
    """Return `patient_events` of a MEDS dataset: its folder, or one Parquet file of its data.

    A single file has no descriptions of codes. Raises UserError for files that are not MEDS.
    """
    with scratch("ehrr1-meds-") as folder:
        store = _meds_store(source, subject_id, folder)
        return patient_events(store, subject_id, time, hours, inclusive)


def _meds_store(source: Path, subject_id: int, folder: Path) -> Store:
    """Return a store of this patient only; large datasets are filtered, not read whole."""
    root = folder / "meds"
    (root / "data").mkdir(parents=True)
    files = [source] if source.is_file() else data_files(source / "data")
    if not files:
        raise UserError(
            f"record={source}: there is no data/**/*.parquet; give the folder of a MEDS dataset, "
            "one of its Parquet files, or a record as text"
        )
    for number, file in enumerate(files):
        rows = _rows_of(file, subject_id)
        if rows.height:
            rows.write_parquet(root / "data" / f"{number}.parquet")
    if not any((root / "data").iterdir()):
        raise UserError(f"infer.subject: there is no such patient in {source}")
    (root / "metadata").mkdir()
    for name in ("parents", "codes.parquet"):
        if (source / "metadata" / name).exists():
            (root / "metadata" / name).symlink_to((source / "metadata" / name).resolve())
    meds = MedsFolder(root, patients_per_shard=1)
    number = int(meds.shards.number(pl.Series([subject_id]))[0])
    meds.want([number])
    store = folder / "store"
    with Spool(folder / "spool") as spool:
        read_all(meds, spool)
        parents = {name: of_shard(frame, number) for name, frame in meds.parents.items()}
        write_shard(shard_folder(store, 0), meds, spool.take(number), parents)
    write_shards(store, Shards((subject_id,)))
    return Store(store)


def _rows_of(file: Path, subject_id: int) -> pl.DataFrame:
    try:
        own = pl.col("subject_id").cast(pl.Int64, strict=False) == subject_id
        return pl.scan_parquet(file, glob=False).filter(own).collect()
    except READ_ERRORS as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"record={file}: it cannot be read as MEDS ({type(error).__name__}: {reason})"
        ) from error
