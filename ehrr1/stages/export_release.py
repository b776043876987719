"""stage=export export.layout=release: the files of the EHR-R1 release.

The records are those of `data.protocol=paper`.

release/
    patients_ehr/<subject_id>.parquet      a patient's list of events
    ehr_ins/ehr_ins.csv                    the training split's samples by position in that list
    ehr_ins/ehr_ins_validation.csv         the validation split's; the release has none
    ehr_bench/ehr_bench_{decision_making,risk_prediction}.csv   the test split's
    ehr_bench/ehr_bench.jsonl              the test split's, ready to use
    cache/item_set/<task>.csv              every answer of the task's training samples
    cache/similar_item/<task>.csv          answers that stand together, nearest first, one a column
    index_mapping/{hosp,ed,icu,note}/*.csv what the codes of the exported rows are called

The release's reader loads it (`tests/release_reader.py` is one written from the format alone).
"""

import json
from pathlib import Path
from typing import Any

import polars as pl
from omegaconf import OmegaConf

from ehrr1.errors import UserError
from ehrr1.files import replacing, write_jsonl
from ehrr1.progress import track
from ehrr1.records.decode import store_frames
from ehrr1.records.openness import copy_mark
from ehrr1.records.reading import SUFFIXES, as_text, read_columns
from ehrr1.records.release import layout
from ehrr1.records.release.codes import HEADERS, Codes, Dictionary, codes_of
from ehrr1.tasks.candidates import COUNTED
from ehrr1.tasks.catalog import ALL_TASKS, TASKS
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.tasks.selection import select
from ehrr1.tasks.similar import neighbours_of

ROWS_AT_ONCE = 100_000
SAMPLES_AT_ONCE = 100_000

INDEX_COLUMNS = (
    *("subject_id", "hadm_id", "task", "event", "period_begin", "period_end", "admissions_id"),
    *("last_discharge_id", "target"),
)
"""The release's; ours adds `prediction_time` and `stay_id`, which it does not tell."""


def write(prepared: Prepared, folder: Path, bench: Any) -> dict[str, float | int]:
    """Write the release to `folder`; `bench` returns the rows of the benchmark's JSONL.

    Metrics: `patients`, `rows`, `rows/<file>`. Raises UserError for records of another protocol.
    """
    if "period_begin" not in prepared.index_columns:
        raise UserError(
            "layout=release: the release's files name contexts by position, which only "
            "data.protocol=paper does: run stage=prepare data.protocol=paper first"
        )
    with replacing(folder) as temporary:
        metrics: dict[str, float | int] = {}
        copy_mark(prepared.folder, temporary, prepared.splits["subject_id"])
        codes = codes_of(prepared.store, dictionaries(prepared.folder))
        metrics["patients"] = _write_patients(prepared, codes, temporary / layout.FOLDER)
        metrics |= _write_indices(prepared, temporary)
        _write_cache(prepared, temporary / "cache")
        for name, rows in codes.mappings():
            path = temporary / "index_mapping" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            rows.write_csv(path)
        if prepared.index("test").height:
            metrics["rows"] = write_jsonl(temporary / "ehr_bench" / "ehr_bench.jsonl", bench())
    return metrics


def _write_patients(prepared: Prepared, codes: Codes, folder: Path) -> int:
    folder.mkdir(parents=True)
    patients, visits = prepared.parents["patients"], prepared.parents.get("edstays")
    written: set[int] = set()
    for rows in track(store_frames(prepared.store, ROWS_AT_ONCE), "patients"):
        own = patients.filter(pl.col("subject_id").is_in(rows["subject_id"].unique().implode()))
        for subject, events in layout.event_rows(rows, own, visits, codes):
            events.write_parquet(folder / f"{subject}.parquet", compression="zstd")
            written.add(subject)
    rest = patients.filter(~pl.col("subject_id").is_in(list(written)))
    for subject, events in layout.event_rows(rows.clear(), rest, None, codes):
        events.write_parquet(folder / f"{subject}.parquet", compression="zstd")
    return len(written) + rest.height


def _write_indices(prepared: Prepared, folder: Path) -> dict[str, float | int]:
    """Write the samples of every split by position; answers are JSON, lists of items or a text."""
    kinds = {
        kind: [task for task, entry in TASKS.items() if entry.kind == kind]
        for kind in ("decision", "risk")
    }
    files = {
        "ehr_ins/ehr_ins.csv": ("train", None),
        "ehr_ins/ehr_ins_validation.csv": ("validation", None),
        "ehr_bench/ehr_bench_decision_making.csv": ("test", kinds["decision"]),
        "ehr_bench/ehr_bench_risk_prediction.csv": ("test", kinds["risk"]),
    }
    counts: dict[str, float | int] = {}
    for name, (split, tasks) in files.items():
        index = prepared.index(split, tasks)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        _write_index(prepared, index, folder / name)
        counts[f"rows/{Path(name).stem}"] = index.height
    return counts


def _write_index(prepared: Prepared, index: pl.DataFrame, path: Path) -> None:
    columns = [*INDEX_COLUMNS, "prediction_time", "stay_id"]
    with path.open("w", encoding="utf-8", newline="") as file:
        for number in range(0, max(index.height, 1), SAMPLES_AT_ONCE):
            part = index.slice(number, SAMPLES_AT_ONCE)
            answers = [
                json.dumps(label_of(sample), ensure_ascii=False)
                for sample in prepared.as_samples(part)
            ]
            part = part.with_columns(pl.Series("target", answers, dtype=pl.String))
            file.write(part.select(columns).write_csv(include_header=number == 0))


def _write_cache(prepared: Prepared, folder: Path) -> None:
    """Write the answers to the training split's decisions, the most frequent first.

    Beside each stand the items of the same answers, the nearest first, one a column.
    """
    for name in ("item_set", "similar_item"):
        (folder / name).mkdir(parents=True)
    for task in (task for task, entry in TASKS.items() if entry.kind == "decision"):
        index = select(prepared.index("train", [task]), COUNTED, seed=0)
        if TASKS[task].target == "text" or not index.height:
            continue
        answers = prepared.answers(index)
        items = answers["item"].value_counts().sort(["count", "item"], descending=[True, False])
        items.write_csv(folder / "item_set" / f"{task}.csv")
        similar = neighbours_of(answers)
        most = max(map(len, similar.values()), default=0)
        columns = {
            str(n): [near[n] if n < len(near) else None for near in similar.values()]
            for n in range(most)
        }
        table = pl.DataFrame({"item": list(similar)} | columns)
        table.cast(pl.String).write_csv(folder / "similar_item" / f"{task}.csv")


def dictionaries(prepare: Path) -> Dictionary:
    """Return the dictionaries and maps that `prepare` read, as text, where they still are."""
    data = OmegaConf.load(prepare / "config.yaml").data
    root = Path(data.root) if data.root else prepare / "hospital"
    found = {
        path.name.split(".")[0]: path
        for folder in ("hosp", "icu", "index_mapping", "maps")
        for path in sorted((root / folder).rglob("d_*"))
        if path.name.endswith(SUFFIXES)
    }
    maps = {kind: path for kind, path in data.maps.items() if path and Path(path).is_file()}
    found |= {layout.MAPS[kind]: Path(path) for kind, path in maps.items()}

    def rows(name: str) -> pl.DataFrame | None:
        if name not in found:
            return None
        frame = read_columns([found[name]], list(HEADERS[name]))
        return frame.select(as_text(column) for column in frame.get_columns())

    return rows


def label_of(sample: Sample) -> str | list[str]:
    """Return an answer as the release's files have it: a list of items, or one text."""
    task = ALL_TASKS[sample.task]
    one = task.kind == "risk" or task.target in ("heading", "text")
    return sample.target[0] if one else list(sample.target)
