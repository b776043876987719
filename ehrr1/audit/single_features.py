"""Search for suspiciously precise rules: single features of contexts that predict an answer.

A leak that timestamps do not reveal (a heading that appears at discharge only, a type that is set
at the end) still makes some feature of the context an oracle. Features are headings (present, or
present within the last minutes), items, the last event, and numbers (events, rows, hours since the
last event, hour of the day). A rule is selected on one half of the patients and evaluated on the
other. A listed rule does not prove a leak: what is charted every hour is charted again. It has to
be inspected.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy import sparse
from sklearn.metrics import roc_auc_score

from ehrr1.progress import track
from ehrr1.records.events import Event
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.tasks.selection import rank, select

ANSWERS = 10
"""Maximum number of answers of a task that are examined, the most frequent first."""
LEAST_SHARE = 0.02
"""Minimum share of a task's samples that have an examined answer."""
RECENT_MINUTES = (1, 15, 60)
SUPPORT = 10
"""Minimum number of samples of a half to which a rule applies."""
CHOSEN, CONFIRMED = 0.95, 0.9
"""Minimum precision (or AUROC) of a rule on the half that selects it, and on the other."""
ABOVE_BASE = 0.2
"""Minimum difference between a rule's precision and the share of the answer."""
ITEMS = 400
"""Number of the most frequent items that are features."""
LISTED = 3
"""Maximum number of listed rules per answer, those of the highest recall first."""

SCHEMA = {
    **dict.fromkeys(("task", "answer", "feature"), pl.String()),
    **dict.fromkeys(("precision", "base", "recall"), pl.Float64()),
    "support": pl.Int64(),
}
"""Columns of the rules, with the figures of the half that did not select them.

`feature` predicts `answer` of `task`. `base` is the answer's share, `recall` the share of the
answer's samples to which the rule applies. The `precision` of a number is its AUROC; it has no
recall.
"""


@dataclass(frozen=True)
class Drawn:
    """The samples of a task that are examined, with their features.

    `has` has shape (samples, features), `numbers` (samples, 4). `half` (samples,) is true for the
    patients on whom rules are evaluated; `random` (samples,) marks samples drawn whatever their
    answer.
    """

    samples: list[Sample]
    features: list[str]
    has: sparse.csr_array
    numbers: np.ndarray
    half: np.ndarray
    random: np.ndarray


def find_rules(prepared: Prepared, index: pl.DataFrame, per_task: int, seed: int) -> pl.DataFrame:
    """Return the rules found, with the columns of `SCHEMA`.

    They are sought in `per_task` random samples of each task, and a tenth as many of each frequent
    answer.
    """
    found: list[tuple[str, str, str, float, float, float | None, int]] = []
    tasks = [
        task for task in index["task"].unique() if ALL_TASKS[task].target != "text" and per_task
    ]
    order = list(ALL_TASKS)
    for task in track(sorted(tasks, key=order.index), "searching rules", len(tasks)):
        own = index.filter(pl.col("task") == task)
        shares = _answer_shares(prepared, own)
        drawn = _drawn(prepared, own, list(shares), per_task, seed)
        for answer, base in shares.items():
            found += _rules(drawn, task, answer, base)
    return pl.DataFrame(found, schema=SCHEMA, orient="row")


def _answer_shares(prepared: Prepared, own: pl.DataFrame) -> dict[str, float]:
    counts = prepared.answers(own)["item"].value_counts().sort("count", "item", descending=True)
    shares = ((name, count / own.height) for name, count in counts.head(ANSWERS).iter_rows())
    return {name: share for name, share in shares if share >= LEAST_SHARE and name != "no"}


def _drawn(
    prepared: Prepared, own: pl.DataFrame, answers: Sequence[str], per_task: int, seed: int
) -> Drawn:
    chosen = select(own, per_task, seed).with_columns(pl.lit(True).alias("random"))
    parts = [chosen]
    pairs = prepared.answers(own).with_columns(pl.col("sample").cast(pl.Int64))
    numbered = own.with_row_index("sample").with_columns(pl.col("sample").cast(pl.Int64))
    for answer in answers:
        having = pairs.filter(pl.col("item") == answer).select("sample").unique()
        some = numbered.join(having, on="sample").sort(rank(seed), "sample_id").drop("sample")
        few = some.head(per_task // 10).with_columns(pl.lit(False).alias("random"))
        parts.append(few.select(chosen.columns))
    table = pl.concat(parts).unique("sample_id", keep="first", maintain_order=True)
    samples = prepared.as_samples(table.drop("random"))
    described = [_features(sample, prepared.context(sample)) for sample in samples]
    items = Counter(item for _, own_items, _ in described for item in own_items)
    frequent = {item for item, _ in items.most_common(ITEMS)}
    words = [flags | (own_items & frequent) for flags, own_items, _ in described]
    features = sorted(set().union(*words))
    place = {name: number for number, name in enumerate(features)}
    rows = [(row, place[name]) for row, own_words in enumerate(words) for name in own_words]
    at = np.array(rows, dtype=np.int64).reshape(-1, 2)
    ones = np.ones(len(at), dtype=np.int64)
    shape = (len(samples), len(features))
    subjects = {subject: n for n, subject in enumerate(sorted({s.subject_id for s in samples}))}
    return Drawn(
        samples,
        features,
        sparse.csr_array((ones, (at[:, 0], at[:, 1])), shape=shape),
        np.array([numbers for *_, numbers in described], dtype=np.float64).reshape(-1, 4),
        np.array([subjects[sample.subject_id] % 2 == 1 for sample in samples]),
        table["random"].to_numpy(),
    )


NUMBERS = ("events", "rows", "hours since the last event", "hour of the day")


def _features(
    sample: Sample, events: Sequence[Event]
) -> tuple[set[str], set[str], tuple[float, ...]]:
    """Return the headings, the items, and the `NUMBERS` of a context."""
    flags, items = set(), set()
    now = sample.prediction_time
    ages = []
    for event in events:
        flags.add(event.table)
        items |= {f"{event.table}: {item}" for item in event.items if item}
        if event.time is not None:
            age = (now - event.time).total_seconds() / 60
            ages.append(age)
            flags |= {f"{event.table} of the last {n} min" for n in RECENT_MINUTES if age <= n}
    flags.add(f"the last event is of {events[-1].table}")
    clock = now.hour + now.minute / 60
    last = min(ages, default=0.0) / 60
    return flags, items, (len(events), sum(len(e.rows) for e in events), last, clock)


def _rules(
    drawn: Drawn, task: str, answer: str, base: float
) -> list[tuple[str, str, str, float, float, float | None, int]]:
    is_it = np.array([answer in sample.target for sample in drawn.samples])
    others = ~is_it & drawn.random
    chosen = _judged(drawn, is_it & ~drawn.half, others & ~drawn.half, base)
    judged = _judged(drawn, is_it & drawn.half, others & drawn.half, base)
    enough = (chosen.support >= SUPPORT) & (judged.support >= SUPPORT)
    good = (chosen.precision >= CHOSEN) & (judged.precision >= CONFIRMED)
    good &= judged.precision >= base + ABOVE_BASE
    places = np.flatnonzero(enough & good)
    best = places[np.argsort(-judged.recall[places], kind="stable")][:LISTED]
    names = [*drawn.features, *(f"no {name}" for name in drawn.features)]
    found: list[tuple[str, str, str, float, float, float | None, int]] = [
        (
            *(task, answer, names[place], float(judged.precision[place]), base),
            *(float(judged.recall[place]), int(judged.support[place])),
        )
        for place in best.tolist()
    ]
    for number, name in enumerate(NUMBERS):
        areas = [
            _area(drawn.numbers[:, number], is_it & half, others & half)
            for half in (~drawn.half, drawn.half)
        ]
        if areas[0] >= CHOSEN and areas[1] >= CONFIRMED:
            support = int((is_it & drawn.half).sum())
            found.append((task, answer, name, areas[1], base, None, support))
    return found


@dataclass(frozen=True)
class _Judged:
    """Figures of each feature, followed by those of each feature's absence."""

    precision: np.ndarray
    recall: np.ndarray
    support: np.ndarray


def _judged(drawn: Drawn, yes: np.ndarray, no: np.ndarray, base: float) -> _Judged:
    """Return precision, recall and support at the answer's natural share.

    The misses are counted with one more than seen, so that few samples without the answer prove
    little.
    """
    counts = [np.asarray(drawn.has[mask].sum(axis=0)).ravel() for mask in (yes, no)]
    sizes = [int(mask.sum()) for mask in (yes, no)]
    hits, misses = (
        np.concatenate([count, size - count]) for count, size in zip(counts, sizes, strict=True)
    )
    recall = hits / max(sizes[0], 1)
    false_alarms = (misses + 1) / (sizes[1] + 1)
    right = base * recall
    precision = right / np.maximum(right + (1 - base) * false_alarms, 1e-12)
    return _Judged(precision, recall, hits + misses)


def _area(values: np.ndarray, yes: np.ndarray, no: np.ndarray) -> float:
    """Return the AUROC of a number or of its negative, 0.5 if there are too few samples."""
    if min(yes.sum(), no.sum()) < SUPPORT:
        return 0.5
    both = yes | no
    area = float(roc_auc_score(yes[both], values[both]))
    return max(area, 1 - area)
