"""Chains that the input of `stage=prepare` brings.

They come from `ehr_ins_reasoning.csv` or from rows with `task_info.reasoning`, and are kept as they
are, in the format of the file that `stage=chains` writes.
"""

from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from ehrr1.files import write_jsonl
from ehrr1.prompts.messages import answer_text
from ehrr1.tasks.release.index import written_id
from ehrr1.tasks.release.rows import chain_of, items_of, reasoning_batches

CHAINS = "chains.jsonl"
"""A line a draft, beside the index: `stage=reason` reads it where no `stage=chains` has run."""


def chain_row(sample_id: str, task: str, chain: str, answer: str) -> dict[str, Any]:
    """Return a chain as a line of `CHAINS`; it is not screened."""
    return {
        "sample_id": sample_id,
        "task": task,
        "draft": 0,
        "chain": chain,
        "answer": answer,
        "kept": True,
        "rejected_by": [],
    }


def write_given(root: Path, samples: Collection[str], path: Path) -> Counter[str]:
    """Write the chains of the release's folder `root` whose sample is one of `samples` (ids).

    Returns how many were read, kept, and reported, by reason; nothing is written without any.
    """
    counts: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, Any]]:
        seen: set[str] = set()
        for frame, cells in reasoning_batches(root):
            ids = frame.select(written_id()).to_series()
            parts = zip(ids, frame["task"], frame["answer"], cells, strict=True)
            for sample_id, task, answer, cell in parts:
                counts["read"] += 1
                chain = chain_of(cell)
                why = _why_not(sample_id, chain, samples, seen)
                counts[f"reported/{why}" if why else "kept"] += 1
                if not why and chain is not None:
                    seen.add(sample_id)
                    yield chain_row(sample_id, task, chain, answer_text(items_of(answer)))

    if write_jsonl(path, rows()) == 0:
        path.unlink()
    return counts


def _why_not(
    sample_id: str | None, chain: str | None, samples: Collection[str], seen: Collection[str]
) -> str | None:
    if sample_id not in samples:
        return "no_sample"
    if chain is None:
        return "no_chain"
    return "repeated" if sample_id in seen else None
