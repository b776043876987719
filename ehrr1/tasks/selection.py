"""Seeded selection of samples with limits per task, which keeps contexts together."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import polars as pl

from ehrr1.errors import UserError
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.samples import Sample

LEARNABLE = tuple(task for task, entry in TASKS.items() if entry.ehr_ins_cap > 0)
"""Tasks that EHR-Ins trains on: all except the writing of discharge notes."""

RISK = tuple(task for task, entry in TASKS.items() if entry.kind == "risk")


def known_tasks(names: Sequence[str] | None, among: Collection[str]) -> tuple[str, ...] | None:
    """Return the value of `data.tasks`. Raises UserError for a name that is none `among` them."""
    if names is None:
        return None
    unknown = [name for name in names if name not in among]
    if unknown:
        raise UserError(
            f"data.tasks: {', '.join(map(str, unknown))} is no task; the tasks are "
            f"{', '.join(among)}"
        )
    return tuple(names)


def rank(seed: int) -> pl.Expr:
    """Return an expression for a seeded order of contexts, uniform over 64 bits.

    The order does not depend on the answers.
    """
    return pl.col("context_id").hash(seed)


Limits = int | Mapping[str, int | None] | None
"""Maximum number of rows of each task; None: all."""


def select(
    index: pl.DataFrame | pl.LazyFrame,
    per_task: Limits,
    seed: int,
    balance: bool = False,
) -> pl.DataFrame:
    """Select at most `per_task` rows of each task (None: all) from an index, in its order.

    A row's rank is a hash of the seed and its context, so that tasks with the same contexts select
    the same ones, whose trunks are then computed once. The rank does not depend on the answer and
    thus preserves prevalence. A smaller selection is part of a larger one. `balance` draws equally
    many "yes" and "no" of each risk task, at most `per_task` together.

    From a LazyFrame, only the rows with the lowest ranks are read: the index of the full MIMIC-IV
    is larger than most memories.
    """
    risk = pl.col("task").is_in(RISK)
    stratum = pl.when(risk & balance).then(pl.col("target").list.first()).otherwise(-1)
    if isinstance(index, pl.LazyFrame):
        index = _lowest(index, per_task, rank(seed), stratum)
    if per_task is None and not balance:
        return index
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


def _lowest(index: pl.LazyFrame, per_task: Limits, rank: pl.Expr, stratum: pl.Expr) -> pl.DataFrame:
    """Return all rows of each task and stratum that can be among its first `per_task` by rank.

    Ranks are uniform over 64 bits: a bound with a margin contains the lowest n with high
    probability. If it contains fewer, all rows are read.
    """
    if per_task is None:
        return index.collect()
    keys = ["task", "stratum"]
    index = index.with_row_index("place").with_columns(stratum.alias("stratum"))
    sizes = index.group_by(keys).len("size").collect()
    limit = pl.lit(per_task, pl.Int64)
    if isinstance(per_task, Mapping):
        limit = pl.col("task").replace_strict(dict(per_task), return_dtype=pl.Int64)
    needed = pl.min_horizontal("size", limit.fill_null(pl.col("size")))
    sizes = sizes.with_columns(needed.alias("needed"))
    share = (pl.col("needed") + 8 * pl.col("needed").sqrt() + 50) / pl.col("size")
    bound = (share.clip(upper_bound=1) * (2.0**64 - 2**11)).cast(pl.UInt64)
    all_of_it = pl.col("needed") == pl.col("size")
    bounds = sizes.select(*keys, pl.when(~all_of_it).then(bound).alias("bound"))
    near = pl.col("bound").is_null() | (rank <= pl.col("bound"))
    found = index.join(bounds.lazy(), on=keys).filter(near).drop("bound").collect()
    counts = sizes.join(found.group_by(keys).len("found"), on=keys, how="left")
    if (counts["found"].fill_null(0) < counts["needed"]).any():
        found = index.collect()
    return found.sort("place").drop("place", "stratum")


def by_context(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """Group samples by context, in order of first appearance, so that a context is read once."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.context_id, []).append(sample)
    return groups
