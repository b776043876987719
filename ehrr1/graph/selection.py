"""A seeded, capped choice of samples that keeps contexts together."""

import hashlib
from collections.abc import Iterable

import polars as pl

from ehrr1.tasks.samples import Sample


def select(index: pl.DataFrame, per_task: int | None, seed: int) -> pl.DataFrame:
    """At most `per_task` rows of each task (None: all) of an index of samples, in its order.

    A row's rank is a hash of the seed and its context, so that tasks that ask about the same
    context choose the same ones: their trunks are then computed once. The rank knows nothing of
    the answer: prevalence stays what it is. A smaller choice is part of a larger one.
    """
    if per_task is None:
        return index
    contexts = index["context_id"].unique()
    ranks = pl.Series("rank", [rank(seed, name) for name in contexts], dtype=pl.UInt64)
    return (
        index.with_row_index("place")
        .join(pl.DataFrame({"context_id": contexts, "rank": ranks}), on="context_id")
        .sort("rank", "sample_id")
        .group_by("task", maintain_order=True)
        .head(per_task)
        .sort("place")
        .select(index.columns)
    )


def rank(seed: int, name: str) -> int:
    """A number that orders names at random, the same in every process."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest())


def by_context(samples: Iterable[Sample]) -> dict[str, list[Sample]]:
    """Samples grouped by context, in order of first appearance: a context is then read once."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.context_id, []).append(sample)
    return groups
