"""What else an audit asks of an index: its labels under the other protocol, patients that stand in
several splits, answers that stand in their context."""

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
from ehrr1.records.store import NO_ID, Patient, Shard
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.index import numbered_events
from ehrr1.tasks.labels import risk_samples
from ehrr1.tasks.paper.events import DISCHARGE, event_list, record_rows
from ehrr1.tasks.paper.labels import risk_candidates
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.tasks.selection import RISK, by_context, select

LabelsOf = Callable[[Prepared, Collection[str]], pl.DataFrame]
"""The risk candidates of these tasks that a protocol asks, from the tables of a prepared folder:
columns `task, subject_id, hadm_id, stay_id, label` (true: yes)."""

LEAST_ROWS = 20
"""Shorter records are equal by chance."""


def strict_labels(prepared: Prepared, tasks: Collection[str]) -> pl.DataFrame:
    """By the rules of `tasks.labels`."""
    return risk_samples(prepared.parents, tasks).frame


def paper_labels(prepared: Prepared, tasks: Collection[str]) -> pl.DataFrame:
    """By the release's rules, before its filters on the length of records and contexts."""
    shards = [prepared.store.shard(number) for number in range(len(prepared.store.shards))]
    notes = any((shard.table == DISCHARGE).any() for shard in shards)
    parts = []
    for shard in shards:
        rows = numbered_events(pl.read_ipc(shard.folder / "rows.arrow"))
        parents = shard.parents
        events = event_list(record_rows(rows), parents)
        asked = risk_candidates(events, parents, tasks, notes=notes).filter(pl.col("why").is_null())
        ids = events.select("subject_id", pl.col("hadm_id", "stay_id").replace(NO_ID, None))
        parts.append(
            pl.concat([asked.select("task", "label"), ids[asked["number"]]], how="horizontal")
        )
    return pl.concat(parts)


LABELS: dict[str, LabelsOf] = {"strict": strict_labels, "paper": paper_labels}
"""By `data.protocol`."""

OTHER = {"strict": "paper", "paper": "strict"}


# --- labels -----------------------------------------------------------------------------------


def index_labels(prepared: Prepared, index: pl.DataFrame) -> pl.DataFrame:
    """The risk samples of an index as `LabelsOf` gives them."""
    risk = index.filter(pl.col("task").is_in(RISK))
    label = [sample.target == ("yes",) for sample in in_chunks(prepared, risk)]
    ids = risk.select("task", "subject_id", "hadm_id", "stay_id")
    return ids.with_columns(pl.Series("label", label, dtype=pl.Boolean))


def label_changes(here: pl.DataFrame, there: pl.DataFrame) -> pl.DataFrame:
    """Compares the labels of an index with those of another protocol, candidate by candidate.

    A candidate is a task and an ICU or ED stay, or where there is none a hospital stay, of one
    patient; asked more than once, its last label counts. Columns, a row for each task that is asked
    `here`: `task, both` (asked by both), `changed`, `to_yes` (no here, yes there), `only_here`,
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
    """Columns `subject_id, splits`: patients whom index and split list put in more than one."""
    named = pl.concat([index.select("subject_id", "split"), prepared.splits]).drop_nulls()
    splits = named.group_by("subject_id").agg(pl.col("split").unique().sort().alias("splits"))
    return splits.filter(pl.col("splits").list.len() > 1).sort("subject_id")


def same_records(prepared: Prepared) -> list[list[int]]:
    """Groups of patient numbers in several splits that have the same record.

    The same record: the same tables at the same times since its first row, 20 rows or more.
    """
    groups: dict[bytes, list[int]] = {}
    splits = dict(prepared.splits.select("subject_id", "split").iter_rows())
    for subject in splits:
        rows, patient = prepared.store.find(subject)
        if patient.last - patient.first >= LEAST_ROWS:
            groups.setdefault(fingerprint(rows, patient), []).append(subject)
    return [own for own in groups.values() if len({splits[subject] for subject in own}) > 1]


def fingerprint(rows: Shard, patient: Patient) -> bytes:
    """Of the tables and relative times of a record: dates are shifted for each patient number."""
    own = slice(patient.first, patient.last)
    times = rows.event_time[own] - rows.event_time[patient.first]
    content = hashlib.blake2b(times.tobytes(), digest_size=16)
    content.update(np.ascontiguousarray(rows.table[own]).tobytes())
    return content.digest()


# --- what a context says ----------------------------------------------------------------------


@dataclass
class Texts:
    """What was found in rendered contexts."""

    answers: pl.DataFrame
    """A row a task: `task, examined, all, any` (samples all, or any, of whose answer stands)."""
    contexts: int
    """So many contexts were rendered."""
    unlike: list[str]
    """Samples whose rendered context has another number of rows than the one judged."""
    rechecked: int
    """So many of the contexts were counted against the raw files."""
    findings: list[Finding]
    """What the raw files say against them."""


def read_texts(
    prepared: Prepared,
    index: pl.DataFrame,
    view: View,
    per_task: int | None,
    seed: int,
    recheck: Recheck | None = None,
) -> Texts:
    """Render contexts of a seeded choice of samples, look for the answers of decision samples in
    them, compare the number of their rows with what `find_leaks` judged, and with the raw files."""
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
        # A bar in the cell of a table is written with Markdown's escape.
        text = record_markdown(events).replace(r"\|", "|")
        found += _answers(group, text.casefold())
    schema = {"task": pl.String(), "all": pl.Boolean(), "any": pl.Boolean()}
    frame = pl.DataFrame(found, schema=schema, orient="row")
    counts = frame.group_by("task").agg(pl.len().alias("examined"), pl.col("all", "any").sum())
    return Texts(in_order(counts), len(groups), unlike, rechecked, findings)


def _answers(group: Sequence[Sample], text: str) -> Iterator[tuple[str, bool, bool]]:
    for sample in group:
        if TASKS[sample.task].kind == "decision":
            stand = [stands(line, text) for line in sample.target]
            yield sample.task, all(stand), any(stand)


def stands(line: str, text: str) -> bool:
    """Whether an answer's line stands in a casefolded text, not as a part of longer words."""
    line = line.strip().casefold()
    return line in text and re.search(rf"(?<!\w){re.escape(line)}(?!\w)", text) is not None


@dataclass
class Audit:
    """All that `stage=audit` found in one index; the frames are those of the functions named."""

    protocol: str
    contexts: int
    tasks: pl.DataFrame
    """`leaks.by_task`"""
    tables: pl.DataFrame
    """`leaks.by_table`"""
    examples: dict[str, list[str]]
    """`leaks.examples`"""
    labels: pl.DataFrame | None
    """`label_changes`; None where the other protocol cannot be asked."""
    splits: pl.DataFrame
    """`split_patients`"""
    records: list[list[int]]
    """`same_records`"""
    texts: Texts
    assumed: dict[str, float]
    """Share of a table's rows whose time of knowledge is assumed, where there are any."""
    surely_leaking: int
    """Samples that leak even without the tables all of whose times are assumed."""
    rules: pl.DataFrame
    """`evaluation.too_good.find_rules`"""

    @property
    def samples(self) -> int:
        return int(self.tasks["samples"].sum())

    @property
    def leaking(self) -> int:
        return int(self.tasks["leaking"].sum())
