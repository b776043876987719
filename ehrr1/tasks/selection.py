"""A seeded, capped choice of samples that keeps contexts together."""

from collections.abc import Iterable, Mapping

import polars as pl

from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.samples import Sample

LEARNABLE = tuple(task for task, entry in TASKS.items() if entry.ehr_ins_cap > 0)
"""Tasks that EHR-Ins trains on: all but the writing of discharge notes."""

RISK = tuple(task for task, entry in TASKS.items() if entry.kind == "risk")


def rank(seed: int) -> pl.Expr:
    """A seeded order of contexts, uniform over 64 bits, that knows nothing of the answers."""
    return pl.col("context_id").hash(seed)


def select(
    index: pl.DataFrame,
    per_task: int | Mapping[str, int | None] | None,
    seed: int,
    balance: bool = False,
) -> pl.DataFrame:
    """At most `per_task` rows of each task (None: all) of an index of samples, in its order.

    A row's rank is a hash of the seed and its context, so that tasks that ask about the same
    context choose the same ones: their trunks are then computed once. The rank knows nothing of
    the answer: prevalence stays what it is. A smaller choice is part of a larger one. `balance`
    draws equally many "yes" and "no" of each risk task, at most `per_task` together.
    """
    if per_task is None and not balance:
        return index
    risk = pl.col("task").is_in(RISK)
    stratum = pl.when(risk & balance).then(pl.col("target").list.first()).otherwise(-1)
    ranked = (
        index.with_row_index("place")
        .with_columns(stratum.alias("stratum"), rank(seed).alias("rank"))
        .sort("rank", "sample_id")
        .with_columns(pl.int_range(pl.len()).over("task", "stratum").alias("nth"))
    )
    limit = pl.lit(per_task, pl.Int64)
    if isinstance(per_task, Mapping):
        limit = pl.col("task").replace_strict(dict(per_task), return_dtype=pl.Int64)
    if balance:
        sizes = ranked.group_by("task", "stratum").len()
        fewest = sizes.group_by("task").agg(
            pl.when(pl.len() > 1).then(pl.col("len").min()).otherwise(0).alias("fewest")
        )
        ranked = ranked.join(fewest, on="task")
        half = pl.min_horizontal(limit // 2, "fewest")
        limit = pl.when(risk).then(half).otherwise(limit)
    return (
        ranked.filter((pl.col("nth") < limit) | limit.is_null()).sort("place").select(index.columns)
    )


def by_context(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """Samples grouped by context, in order of first appearance: a context is then read once."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.context_id, []).append(sample)
    return groups
