"""Reading of EHRSHOT's files, of the authors' folder (EHRSHOT_ASSETS) or of their MEDS export.

Both contain the same labels and, by patient, the same splits; this module returns them in the same
tables. Formats: docs/benchmarks_formats.md.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import polars as pl

from ehrr1.errors import UserError
from ehrr1.json_text import BadJsonError, from_json
from ehrr1.records.reading import (
    READ_ERRORS,
    as_id,
    as_moment,
    as_text,
    as_time,
    check_zones,
    data_files,
    is_data,
    read_batches,
    read_columns,
    read_header,
)
from ehrr1.tasks.external.benchmark_tasks import EHRSHOT_QUESTIONS, LAB

ASSETS = "EHRSHOT_ASSETS"
LABELS, SHOTS = "labeled_patients.csv", "all_shots_data.json"

SPLITS = {
    **{"train": "train", "val": "validation", "validation": "validation", "test": "test"},
    **{"tuning": "validation", "held_out": "test"},
}
"""Name of a split in the files -> name of the split in this project."""

EVENT_COLUMNS = {
    "subject_id": ("patient_id", "subject_id"),
    "time": ("start", "time"),
    "code": ("code",),
    "value": ("value", "text_value"),
    "number": ("numeric_value",),
    "unit": ("unit",),
    "visit": ("visit_id",),
    "table": ("omop_table",),
}
"""Column here -> its names in the authors' CSV and in MEDS; the first three are needed."""

MISSING = ("", "nan", "NaN", "None")

LABEL_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "task": pl.String,
    "subject_id": pl.Int64,
    "prediction_time": pl.Datetime("us"),
    "target": pl.String,
    "split": pl.String,
}


@dataclass(frozen=True)
class EhrshotFolder:
    """Paths of the files; `labels` by task (unknown tasks too), `shots` by task if any."""

    root: Path
    events: list[Path]
    labels: dict[str, list[Path]]
    shots: dict[str, Path]
    splits: Path


@dataclass
class Labels:
    """The usable labels (`LABEL_SCHEMA`), the number of labels read, and counts of the others."""

    frame: pl.DataFrame
    read: int
    reported: Counter[str] = field(default_factory=Counter)


def find(root: Path) -> EhrshotFolder:
    """Find the files below `root`: the authors' folder, its parent, or a MEDS folder.

    Raises UserError if events, labels or splits are missing.
    """
    if not root.is_dir():
        raise UserError(f"data.root={root}: there is no such folder")
    base = root / ASSETS if (root / ASSETS).is_dir() else root
    events = [base / "data" / name for name in ("ehrshot.csv", "ehrshot.csv.gz")]
    events = [path for path in events if path.is_file()][:1]
    if events:
        labels = {path.parent.name: [path] for path in _of_tasks(base, LABELS)}
        splits = next(iter(sorted(base.glob("splits*/person_id_map.csv"))), None)
        needed = f"benchmark/<task>/{LABELS}", "splits/person_id_map.csv"
    else:
        events = data_files(base / "data")
        labels = _meds_labels(base)
        splits = base / "metadata" / "subject_splits.parquet"
        needed = "labels/<task>/*.parquet", "metadata/subject_splits.parquet"
    if not events:
        raise UserError(
            f"data.root={root}: neither data/ehrshot.csv nor data/**/*.parquet is there; give "
            "EHRSHOT's folder EHRSHOT_ASSETS, or that of its MEDS export"
        )
    for found, name in ((labels, needed[0]), (splits and splits.is_file(), needed[1])):
        if not found:
            raise UserError(f"data.root={root}: {name} is missing: fetch EHRSHOT's files again")
    assert splits is not None
    shots = {path.parent.name: path for path in _of_tasks(base, SHOTS)}
    if events[0].suffix == ".parquet":
        check_zones([*events, *chain.from_iterable(labels.values())], ("time", "prediction_time"))
    return EhrshotFolder(base, events, labels, shots, splits)


def _of_tasks(base: Path, name: str) -> list[Path]:
    """Return the file of that name of each task of the authors' folder."""
    return [path for path in sorted(base.glob(f"benchmark*/*/{name}")) if is_data(path.parent.name)]


def _meds_labels(base: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for folder in (base / "labels", base / "task_labels"):
        for path in data_files(folder):
            found.setdefault(path.relative_to(folder).parts[0].removesuffix(".parquet"), [])
            found[path.relative_to(folder).parts[0].removesuffix(".parquet")].append(path)
    return found


def read_labels(folder: EhrshotFolder) -> Labels:
    """Read all labels with the split of their patient.

    Yes is label 1, or label 0 (normal) for a lab task; the severities 1 to 3 of a lab task count as
    1, as in EHRSHOT's own evaluation. Raises UserError if no folder of labels belongs to a task of
    EHRSHOT.
    """
    splits = _read_splits(folder.splits)
    labels = Labels(pl.DataFrame(schema=LABEL_SCHEMA), 0)
    parts = []
    for task, files in folder.labels.items():
        rows = pl.concat([_label_file(file) for file in files])
        labels.read += rows.height
        if task not in EHRSHOT_QUESTIONS:
            labels.reported["unknown_task"] += rows.height
            continue
        parts.append(rows.with_columns(pl.lit(task).alias("task"), _target(task)))
    if not parts:
        raise UserError(
            f"data.root={folder.root}: none of its {len(folder.labels)} folders of labels is one "
            f"of EHRSHOT's tasks ({', '.join(EHRSHOT_QUESTIONS)})"
        )
    frame = pl.concat(parts).join(splits, on="subject_id", how="left", maintain_order="left")
    key = ("task", "subject_id", "prediction_time")
    for reason, bad in {
        "no_subject": pl.col("subject_id").is_null(),
        "bad_time": pl.col("prediction_time").is_null(),
        "bad_label": pl.col("target").is_null(),
        "no_split": pl.col("split").is_null(),
        "repeated": ~pl.struct(key).is_first_distinct(),
    }.items():
        labels.reported[reason] += frame.filter(bad).height
        frame = frame.filter(~bad)
    labels.reported = +labels.reported
    labels.frame = frame.select(*LABEL_SCHEMA)
    return labels


def _label_file(path: Path) -> pl.DataFrame:
    """Read the columns `subject_id, prediction_time, label` (0, 1, ...; null if unreadable)."""
    there = _columns(
        path, {"subject_id": ("patient_id", "subject_id"), "time": ("prediction_time",)}
    )
    values = [c for c in ("value", "boolean_value", "integer_value") if c in _header(path)]
    if not values:
        raise UserError(f"{path} lacks the column value (or boolean_value, integer_value)")
    frame = read_columns([path], [*there.values(), *values])
    cells = [as_text(frame[name]).str.strip_chars().str.to_lowercase() for name in values]
    words = {"true": "1", "false": "0"}
    numbers = [
        cell.replace(words).str.strip_suffix(".0").cast(pl.Int64, strict=False) for cell in cells
    ]
    label = pl.DataFrame(numbers).select(pl.coalesce(pl.all())).to_series()
    return pl.DataFrame(
        {
            "subject_id": as_id(frame[there["subject_id"]]),
            "prediction_time": _time(frame[there["time"]]),
            "label": label,
        }
    )


def _target(task: str) -> pl.Expr:
    label = pl.col("label")
    lab = task.startswith(LAB)
    known = label.is_between(0, 3 if lab else 1)
    yes = label == 0 if lab else label == 1
    words = pl.when(yes).then(pl.lit("yes")).otherwise(pl.lit("no"))
    return pl.when(known).then(words).alias("target")


def _read_splits(path: Path) -> pl.DataFrame:
    columns = _columns(
        path, {"subject_id": ("omop_person_id", "subject_id", "patient_id"), "split": ("split",)}
    )
    frame = read_columns([path], list(columns.values()))
    split = as_text(frame["split"]).replace_strict(SPLITS, default=None, return_dtype=pl.String)
    splits = pl.DataFrame({"subject_id": as_id(frame[columns["subject_id"]]), "split": split})
    splits = splits.drop_nulls().unique(maintain_order=True)
    if twice := splits.height - splits["subject_id"].n_unique():
        raise UserError(f"{path}: {twice} patients are in two splits; mend the file")
    return splits


def read_shots(folder: EhrshotFolder) -> pl.DataFrame:
    """Read the benchmark's k-shot sets of the training split.

    Columns: `task, subject_id, prediction_time, k, replicate`, with each sample once per set
    (EHRSHOT draws rare classes with replacement). Raises UserError for a malformed file.
    """
    parts = [pl.DataFrame(schema=_SHOT_SCHEMA)]
    for task, path in folder.shots.items():
        if task in EHRSHOT_QUESTIONS:
            try:
                sets = from_json(path.read_bytes())[task]
                parts += [
                    _shot_set(task, int(k), int(replicate), one)
                    for k, replicates in sets.items()
                    for replicate, one in replicates.items()
                    if int(k) > 0
                ]
            except (
                ValueError,
                KeyError,
                TypeError,
                AttributeError,
                OverflowError,
                *READ_ERRORS,
            ) as e:
                raise UserError(
                    f"{path} is not as EHRSHOT has it ({type(e).__name__}): fetch it again, or "
                    "remove it to have examples drawn"
                ) from e
    return pl.concat(parts)


_SHOT_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "task": pl.String,
    "subject_id": pl.Int64,
    "prediction_time": pl.Datetime("us"),
    "k": pl.Int64,
    "replicate": pl.Int64,
}


def _shot_set(task: str, k: int, replicate: int, one: Mapping[str, list[str]]) -> pl.DataFrame:
    times = as_time(pl.Series(one["label_times_train_k"], dtype=pl.String))
    frame = pl.DataFrame({"subject_id": one["patient_ids_train_k"], "prediction_time": times})
    named = frame.with_columns(task=pl.lit(task), k=pl.lit(k), replicate=pl.lit(replicate))
    return named.unique(maintain_order=True).select(*_SHOT_SCHEMA).cast(pl.Schema(_SHOT_SCHEMA))


def event_batches(folder: EhrshotFolder) -> Iterator[pl.DataFrame]:
    """Yield all events in batches: `subject_id, time, code, value, unit, visit, table`.

    `value` is the text or the number, "" if there is none, as in `unit`, `visit` and `table`. The
    end of a visit or a prescription is not read, since it lies in the future at its start.
    """
    for file in folder.events:
        there = _columns(file, EVENT_COLUMNS, needed=3)
        for frame in read_batches([file], list(there.values())):
            cells = {
                name: as_text(frame[there[name]]).str.strip_chars()
                if name in there
                else pl.repeat(None, frame.height, dtype=pl.String, eager=True)
                for name in ("value", "number", "unit", "visit", "table")
            }
            texts = {name: _without_missing(cell) for name, cell in cells.items()}
            value = texts["value"].zip_with(texts["value"] != "", texts["number"])
            yield pl.DataFrame(
                {
                    "subject_id": as_id(frame[there["subject_id"]]),
                    "time": _time(frame[there["time"]]),
                    "code": as_text(frame[there["code"]]).str.strip_chars(),
                    "value": value.str.replace(r"^(-?\d+)\.0$", "$1"),
                    **{name: texts[name] for name in ("unit", "visit", "table")},
                }
            )


def _time(column: pl.Series) -> pl.Series:
    """Convert the times of the authors' CSV, or of their MEDS export as those of all MEDS."""
    return as_time(as_moment(column) if column.dtype == pl.Datetime else column)


def _without_missing(cell: pl.Series) -> pl.Series:
    cell = cell.fill_null("")
    return cell.set(cell.is_in(list(MISSING)), "")


def read_descriptions(folder: EhrshotFolder, codes: Collection[str]) -> dict[str, str]:
    """Read the descriptions of `codes` from the available files.

    These are the codes.parquet of MEDS, the vocabulary of EHRSHOT's model, and OMOP's CONCEPT.csv,
    in this order of precedence; codes without a description are left out.
    """
    found: dict[str, str] = {}
    meds = folder.root / "metadata" / "codes.parquet"
    tokens, words = (
        folder.root / "models" / "clmbr" / f"token_2_{name}.json"
        for name in ("code", "description")
    )
    concepts = folder.root / "athena_download" / "CONCEPT.csv"
    if concepts.is_file():
        found |= _concepts(concepts, codes)
    if tokens.is_file() and words.is_file():
        text = _object(words)
        found |= _described({str(code): text.get(token) for token, code in _object(tokens).items()})
    if meds.is_file():
        columns = _columns(meds, {"code": ("code",), "description": ("description",)})
        frame = read_columns([meds], list(columns.values()))
        found |= _described(dict(frame.iter_rows()))
    wanted = set(codes)
    return {code: text for code, text in found.items() if code in wanted}


def _described(texts: Mapping[str, object]) -> dict[str, str]:
    return {
        code: " ".join(text.split())
        for code, text in texts.items()
        if isinstance(text, str) and text.strip() not in (code, *MISSING)
    }


def _concepts(path: Path, codes: Collection[str]) -> dict[str, str]:
    """Read descriptions from OMOP's vocabulary, which has millions of rows.

    A code is `vocabulary_id/concept_code`. Raises UserError for a file that cannot be read.
    """
    code = pl.concat_str("vocabulary_id", "concept_code", separator="/")
    try:
        table = pl.scan_csv(
            path, separator="\t", quote_char=None, infer_schema_length=0, glob=False
        )
        chosen = table.select(code.alias("code"), "concept_name")
        frame = chosen.filter(pl.col("code").is_in(list(codes))).collect(engine="streaming")
    except READ_ERRORS as error:
        raise UserError(
            f"{path} is not an OMOP vocabulary ({type(error).__name__}): fetch it from "
            "athena.ohdsi.org again, or remove it"
        ) from error
    return _described(dict(frame.iter_rows()))


def _object(path: Path) -> dict[str, object]:
    try:
        value = from_json(path.read_bytes())
    except BadJsonError as error:
        raise UserError(f"{path} is no JSON: fetch it again, or remove it") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object: fetch it again, or remove it")
    return value


def _header(path: Path) -> list[str]:
    return [name.strip().lower() for name in read_header(path)]


def _columns(
    path: Path, wanted: Mapping[str, tuple[str, ...]], needed: int | None = None
) -> dict[str, str]:
    """Return name here -> the file's column, for those that the file has.

    Raises UserError if one of the first `needed` (None: all) is missing.
    """
    header = _header(path)
    found = {name: c for name, options in wanted.items() for c in options if c in header}
    missing = [wanted[name][0] for name in list(wanted)[:needed] if name not in found]
    if missing:
        raise UserError(
            f"{path} lacks the column{'s' * (len(missing) > 1)} {', '.join(missing)}: is it "
            "EHRSHOT's (docs/benchmarks_formats.md)?"
        )
    return found
