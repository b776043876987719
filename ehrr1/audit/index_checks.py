"""Further checks of an index: labels by the other protocol, splits, answers within contexts."""

import hashlib
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from ehrr1.audit.leakage import View, in_chunks, in_order
from ehrr1.audit.recheck import Finding, Recheck
from ehrr1.progress import track
from ehrr1.records.markdown import record_markdown
from ehrr1.records.store import Patient, Shard
from ehrr1.records.store_schema import NO_ID
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.index import numbered_events
from ehrr1.tasks.labels import risk_samples
from ehrr1.tasks.paper.events import DISCHARGE, event_list, record_rows
from ehrr1.tasks.paper.labels import risk_candidates
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.tasks.selection import RISK, by_context, select

LabelsOf = Callable[[Prepared, Collection[str]], pl.DataFrame]
"""Function from a prepared folder and tasks to the risk candidates of a protocol.

Columns: `task, subject_id, hadm_id, stay_id, label` (true: yes).
"""

LEAST_ROWS = 20
"""Minimum number of rows of records that are compared; shorter ones may be equal by chance."""


def strict_labels(prepared: Prepared, tasks: Collection[str]) -> pl.DataFrame:
    """Return the risk candidates by the rules of `tasks.labels`."""
    return risk_samples(prepared.parents, tasks).frame


def paper_labels(prepared: Prepared, tasks: Collection[str]) -> pl.DataFrame:
    """Return the candidates by the release's rules, before its filters on numbers of events."""
    shards = [prepared.store.shard(number) for number in range(len(prepared.store.shards))]
    notes = any((shard.table == DISCHARGE).any() for shard in shards)
    parts = []
    for shard in shards:
        rows = numbered_events(pl.scan_ipc(shard.folder / "rows.arrow", glob=False).collect())
        parents = shard.parents
        events = event_list(record_rows(rows), parents)
        candidates = risk_candidates(events, parents, tasks, notes=notes).filter(
            pl.col("why").is_null()
        )
        ids = events.select("subject_id", pl.col("hadm_id", "stay_id").replace(NO_ID, None))
        parts.append(
            pl.concat(
                [candidates.select("task", "label"), ids[candidates["number"]]], how="horizontal"
            )
        )
    return pl.concat(parts)


LABELS: dict[str, LabelsOf] = {"strict": strict_labels, "paper": paper_labels}
"""Function for the labels of each `data.protocol`."""

OTHER = {"strict": "paper", "paper": "strict"}


# --- labels -----------------------------------------------------------------------------------


def index_labels(prepared: Prepared, index: pl.DataFrame) -> pl.DataFrame:
    """Return the risk samples of an index in the columns of `LabelsOf`."""
    risk = index.filter(pl.col("task").is_in(RISK))
    label = [sample.target == ("yes",) for sample in in_chunks(prepared, risk)]
    ids = risk.select("task", "subject_id", "hadm_id", "stay_id")
    return ids.with_columns(pl.Series("label", label, dtype=pl.Boolean))


def label_changes(here: pl.DataFrame, there: pl.DataFrame) -> pl.DataFrame:
    """Compare the labels of an index with those of another protocol, candidate by candidate.

    A candidate is a task and an ICU or ED stay, or otherwise a hospital stay, of one patient; the
    last label of a repeated candidate is used. Returns one row for each task of `here`, with the
    columns `task, both` (in both protocols), `changed`, `to_yes` (no here, yes there), `only_here`,
    `only_there`.
    """
    one, other = _candidates(here), _candidates(there)
    keys = ["task", "subject_id", "stay"]
    both = one.join(
        other.filter(pl.col("task").is_in(one["task"].unique().implode())),
        on=keys,
        how="full",
        coalesce=True,
        suffix="_there",
    )
    now, then = pl.col("label"), pl.col("label_there")
    return in_order(
        both.group_by("task").agg(
            (now.is_not_null() & then.is_not_null()).sum().alias("both"),
            (now != then).sum().alias("changed"),
            (~now & then).sum().alias("to_yes"),
            then.is_null().sum().alias("only_here"),
            now.is_null().sum().alias("only_there"),
        )
    )


def _candidates(labels: pl.DataFrame) -> pl.DataFrame:
    stay = pl.coalesce("stay_id", "hadm_id").fill_null(0).alias("stay")
    named = labels.select("task", "subject_id", stay, "label")
    return named.unique(["task", "subject_id", "stay"], keep="last", maintain_order=True)


# --- splits -----------------------------------------------------------------------------------


def split_patients(prepared: Prepared, index: pl.DataFrame) -> pl.DataFrame:
    """Return `subject_id, splits` of patients who are in several splits of index and split list."""
    named = pl.concat([index.select("subject_id", "split"), prepared.splits]).drop_nulls()
    splits = named.group_by("subject_id").agg(pl.col("split").unique().sort().alias("splits"))
    return splits.filter(pl.col("splits").list.len() > 1).sort("subject_id")


def same_records(prepared: Prepared) -> list[list[int]]:
    """Return groups of patient numbers in several splits that have the same record.

    Records are equal if they have the same tables at the same times relative to their first row,
    and at least `LEAST_ROWS` rows.
    """
    groups: dict[bytes, list[int]] = {}
    splits = dict(prepared.splits.select("subject_id", "split").iter_rows())
    for subject in splits:
        rows, patient = prepared.store.find(subject)
        if patient.last - patient.first >= LEAST_ROWS:
            groups.setdefault(fingerprint(rows, patient), []).append(subject)
    return [own for own in groups.values() if len({splits[subject] for subject in own}) > 1]


def fingerprint(rows: Shard, patient: Patient) -> bytes:
    """Return a hash of the tables and relative times of a record.

    Times are relative because dates are shifted for each patient number.
    """
    own = slice(patient.first, patient.last)
    times = rows.event_time[own] - rows.event_time[patient.first]
    content = hashlib.blake2b(times.tobytes(), digest_size=16)
    content.update(np.ascontiguousarray(rows.table[own]).tobytes())
    return content.digest()


# --- contexts ---------------------------------------------------------------------------------


@dataclass
class Texts:
    """Results of the checks of rendered contexts."""

    answers: pl.DataFrame
    """One row per task: `task, examined, all, any`.

    `all` and `any` count samples of whose answer all lines, or any line, occur in the context.
    """
    contexts: int
    """Number of rendered contexts."""
    unlike: list[str]
    """Samples whose rendered context has a different number of rows than the one judged."""
    rechecked: int
    """Number of contexts that were compared with the raw files."""
    findings: list[Finding]
    """Differences from the raw files."""


def read_texts(
    prepared: Prepared,
    index: pl.DataFrame,
    view: View,
    per_task: int | None,
    seed: int,
    recheck: Recheck | None = None,
) -> Texts:
    """Render the contexts of a seeded selection of samples and check them.

    Searches them for the answers of decision samples, and compares the number of their rows with
    that judged by `find_leaks`, and with the raw files.
    """
    groups = by_context(prepared.as_samples(select(index, per_task, seed)))
    found: list[tuple[str, bool, bool]] = []
    unlike = []
    rechecked, findings = 0, []
    for group in track(groups.values(), "reading contexts", len(groups)):
        events = prepared.context(group[0])
        shown = sum(len(event.rows) for event in events if event.table != "patients")
        rows, patient = prepared.store.find(group[0].subject_id)
        if shown != len(view.positions(rows, patient, group[0])):
            unlike.append(group[0].sample_id)
        if recheck is not None and group[0].subject_id in recheck.subjects:
            rechecked += 1
            findings += recheck.judge(group, events)
        # Vertical bars in the cells of a table are escaped in Markdown.
        text = record_markdown(events).replace(r"\|", "|")
        found += _answers(group, text.casefold())
    schema = {"task": pl.String(), "all": pl.Boolean(), "any": pl.Boolean()}
    frame = pl.DataFrame(found, schema=schema, orient="row")
    counts = frame.group_by("task").agg(pl.len().alias("examined"), pl.col("all", "any").sum())
    return Texts(in_order(counts), len(groups), unlike, rechecked, findings)


def _answers(group: Sequence[Sample], text: str) -> Iterator[tuple[str, bool, bool]]:
    for sample in group:
        if ALL_TASKS[sample.task].kind == "decision":
            stand = [stands(line, text) for line in sample.target]
            yield sample.task, all(stand), any(stand)


def stands(line: str, text: str) -> bool:
    """Return whether an answer's line occurs in a casefolded text as whole words."""
    line = line.strip().casefold()
    return line in text and re.search(rf"(?<!\w){re.escape(line)}(?!\w)", text) is not None


@dataclass
class Audit:
    """All results of `stage=audit` for one index; the frames are results of the functions named."""

    protocol: str
    contexts: int
    tasks: pl.DataFrame
    """Result of `leakage.by_task`."""
    tables: pl.DataFrame
    """Result of `leakage.by_table`."""
    examples: dict[str, list[str]]
    """Result of `leakage.examples`."""
    labels: pl.DataFrame | None
    """Result of `label_changes`; None if the other protocol cannot be applied."""
    splits: pl.DataFrame
    """Result of `split_patients`."""
    records: list[list[int]]
    """Result of `same_records`."""
    texts: Texts
    assumed: dict[str, float]
    """Share of a table's rows whose time of knowledge is assumed, for tables that have any."""
    surely_leaking: int
    """Number of samples that leak even without the tables whose times are all assumed."""
    rules: pl.DataFrame
    """Result of `single_features.find_rules`."""

    @property
    def samples(self) -> int:
        """Return the number of samples."""
        return int(self.tasks["samples"].sum())

    @property
    def leaking(self) -> int:
        """Return the number of leaking samples."""
        return int(self.tasks["leaking"].sum())
