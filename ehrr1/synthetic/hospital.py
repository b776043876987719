"""A synthetic hospital in the files of MIMIC-IV: realistic rows of invented patients.

Illness has a mechanism: chronic conditions, an acute problem and a few latent variables drive all
rows, with noise and gaps, so that answers can be derived from the record, but not by a single rule.
`docs/synthetic.md` describes the mechanism; `synthetic/truth.parquet` holds the latent state.
"""

import gzip
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
import polars as pl

from ehrr1.files import replacing
from ehrr1.progress import track
from ehrr1.records.openness import mark
from ehrr1.synthetic.columns import COLUMNS
from ehrr1.synthetic.conditions import CONDITIONS
from ehrr1.synthetic.course import NEVER, simulate
from ehrr1.synthetic.dictionaries import links, write_dictionaries
from ehrr1.synthetic.drugs import write_drugs
from ehrr1.synthetic.ed import write_emergency
from ehrr1.synthetic.emit import Chunk
from ehrr1.synthetic.icu import write_intensive
from ehrr1.synthetic.notes import write_notes
from ehrr1.synthetic.orders import write_orders
from ehrr1.synthetic.problems import PROBLEMS
from ehrr1.synthetic.signs import LATENTS
from ehrr1.synthetic.stay import write_stays

CHUNK = 250


def write_hospital(folder: Path, subjects: int, seed: int, *, progress: bool = True) -> None:
    """Write a hospital of `subjects` patients to `folder`, atomically.

    The files depend only on `subjects` and `seed`, byte by byte. Patients are generated in chunks
    of 250, each with its own random generator.
    """
    with replacing(folder) as temporary:
        for module in ("hosp", "icu", "ed", "note", "maps", "synthetic"):
            (temporary / module).mkdir(parents=True)
        starts = range(0, subjects, CHUNK)
        chunks = _chunks(starts, subjects, seed)
        if progress:
            chunks = track(chunks, "synthetic hospital", total=len(starts))
        truth = _write_tables(temporary, chunks)
        write_dictionaries(temporary)
        truth.write_parquet(temporary / "synthetic" / "truth.parquet")
        links().write_parquet(temporary / "synthetic" / "links.parquet")
        people = pl.read_csv(
            temporary / "hosp" / "patients.csv.gz", columns=["subject_id"], glob=False
        )
        mark(temporary, people["subject_id"])


def _chunks(starts: range, subjects: int, seed: int) -> Iterator[Chunk]:
    for first in starts:
        rng = np.random.default_rng([seed, first])
        chunk = Chunk(first, simulate(first, min(CHUNK, subjects - first), rng), rng)
        write_emergency(chunk)
        write_stays(chunk)
        write_drugs(chunk)
        write_orders(chunk)
        write_intensive(chunk)
        write_notes(chunk)
        yield chunk


def _write_tables(folder: Path, chunks: Iterator[Chunk]) -> pl.DataFrame:
    """Append each chunk to the tables' files while the next is generated.

    Returns the latent state of all visits.
    """
    truth = []
    tables = [name for name in COLUMNS if name not in _APART and not name.startswith("maps/")]
    files = {name: _Table(folder / f"{name}.csv.gz", COLUMNS[name]) for name in tables}
    with ThreadPoolExecutor(2) as pool:
        pending: list = []
        for chunk in chunks:
            wait(pending)
            for task in pending:
                task.result()
            pending = [
                pool.submit(files[name].append, parts) for name, parts in chunk.tables.items()
            ]
            truth.append(_truth(chunk))
        for task in pending:
            task.result()
    for file in files.values():
        file.close()
    return pl.concat(truth)


_APART = {
    "hosp/d_hcpcs",
    "hosp/d_icd_diagnoses",
    "hosp/d_icd_procedures",
    "hosp/d_labitems",
    "hosp/provider",
    "icu/caregiver",
    "icu/d_items",
}


class _Table:
    """A `.csv.gz` file that is written in parts, without a time stamp in its header."""

    def __init__(self, path: Path, columns: list[str]):
        self.raw = path.open("wb")
        self.file = gzip.GzipFile("", "wb", compresslevel=1, fileobj=self.raw, mtime=0)
        self.file.write((",".join(columns) + "\n").encode())

    def append(self, parts: list[pl.DataFrame]) -> None:
        """Sort the rows by patient and time, and append them to the file."""
        frame = pl.concat(parts, how="vertical_relaxed")
        order = [c for c in ("subject_id", "charttime", "starttime") if c in frame.columns]
        frame = frame.sort(order, maintain_order=True, nulls_last=True)
        text = frame.write_csv(include_header=False, datetime_format="%Y-%m-%d %H:%M:%S")
        self.file.write(text.encode())

    def close(self) -> None:
        """Close the file."""
        self.file.close()
        self.raw.close()


def _truth(chunk: Chunk) -> pl.DataFrame:
    """Return the latent state of every visit: problem, conditions, latents."""
    v = chunk.visits
    ids = {
        name: pl.Series(v[key]).set(pl.Series(v[key] == NEVER), None)
        for name, key in (
            ("hadm_id", "hadm_id"),
            ("ed_stay_id", "ed_id"),
            ("icu_stay_id", "icu_id"),
            ("icu_stay_id_2", "icu2_id"),
        )
    }
    conditions = chunk.patient("conditions")
    return pl.DataFrame(
        {
            "subject_id": v["subject_id"],
            "visit": v["number"],
            "start": pl.from_epoch(pl.Series(v["arrive"]), "s"),
            **ids,
            "problem": [PROBLEMS[p].name for p in v["problem"]],
            **{f"latent_{key}": v[f"z_{key}"] for key in LATENTS},
            **{f"condition_{c.name}": conditions[:, k] for k, c in enumerate(CONDITIONS)},
        }
    )
