"""stage=chains: write a reasoning chain for each sample from its evidence graph, and screen it.

chains.jsonl, a line a draft: sample_id, task, draft, chain, answer, kept, rejected_by (the rules
that it breaks), faithfulness, tokens_in, tokens_out. At most one draft of a sample is kept: the
first that breaks no rule. The answer is the sample's full answer.
"""

import json
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import networkx as nx
import polars as pl
from omegaconf import DictConfig

from ehrr1.errors import UserError
from ehrr1.files import write_jsonl
from ehrr1.graph.evidence import from_json
from ehrr1.graph.screening import RULES, screen
from ehrr1.graph.writer import Writer, write_template
from ehrr1.progress import track
from ehrr1.prompts.messages import answer_text
from ehrr1.runs import Run
from ehrr1.tasks.samples import Prepared, Sample


def run(cfg: DictConfig, run: Run) -> dict[str, float | int]:
    """Write chains.jsonl. Metrics: `chains/<task>` drafts written, `kept/<task>` samples with a
    kept chain, `rejected/<rule>` drafts that break the rule, `no_evidence/<task>` samples for
    which the writer had nothing to say, `faithfulness` the mean over all drafts."""
    write = choose_writer(cfg)
    prepared = Prepared(run.input("prepare"))
    graphs = run.input("graph") / "graphs.jsonl"
    samples = graphed_samples(prepared, graphs)
    tally = Counter({f"rejected/{rule}": 0 for rule in RULES})
    faithful: list[float] = []
    pairs = _read(graphs, samples, cfg.chains.samples_per_task)
    rows = _rows(prepared, pairs, write, cfg.chains.coverage, tally, faithful)
    write_jsonl(run.folder / "chains.jsonl", rows)
    metrics = {name: tally[name] for name in sorted(tally)}
    return metrics | {"faithfulness": sum(faithful) / max(len(faithful), 1)}


def choose_writer(cfg: DictConfig) -> Writer:
    """The writer that `chains.writer` names, with its settings bound."""
    if cfg.chains.writer == "template":
        return partial(write_template, max_evidence=cfg.chains.max_evidence)
    raise UserError(f"chains.writer={cfg.chains.writer}: no such writer; use chains=template")


def graphed_samples(prepared: Prepared, graphs: Path) -> dict[str, Sample]:
    """The samples of graphs.jsonl by id; the index is much longer than that file."""
    with graphs.open(encoding="utf-8") as lines:
        ids = [json.loads(line)["sample_id"] for line in lines]
    chosen = prepared.index().filter(pl.col("sample_id").is_in(ids))
    return {sample.sample_id: sample for sample in prepared.as_samples(chosen)}


def _read(
    graphs: Path, samples: dict[str, Sample], limit: int | None
) -> Iterator[tuple[Sample, nx.DiGraph]]:
    """Stream samples with their graphs, at most `limit` of each task and split."""
    taken: Counter[tuple[str, str]] = Counter()
    with graphs.open(encoding="utf-8") as lines:
        for line in track(lines, "writing chains", len(samples)):
            row = json.loads(line)
            sample = samples[row["sample_id"]]
            taken[sample.task, sample.split] += 1
            if limit is None or taken[sample.task, sample.split] <= limit:
                yield sample, from_json(row["graph"])


def _rows(
    prepared: Prepared,
    graphs: Iterator[tuple[Sample, nx.DiGraph]],
    write: Writer,
    coverage: float,
    tally: Counter[str],
    faithful: list[float],
) -> Iterator[dict[str, Any]]:
    for sample, graph in graphs:
        context = prepared.context(sample)
        drafts = write(sample, context, graph)
        tally[f"no_evidence/{sample.task}"] += not drafts
        kept = False
        for number, draft in enumerate(drafts):
            verdict = screen(draft, sample, context, coverage)
            keep = not kept and not verdict.rejected_by
            kept |= keep
            tally[f"chains/{sample.task}"] += 1
            faithful.append(verdict.faithfulness)
            tally.update(f"rejected/{rule}" for rule in verdict.rejected_by)
            yield {
                "sample_id": sample.sample_id,
                "task": sample.task,
                "draft": number,
                "chain": draft.chain,
                "answer": answer_text(sample.target),
                "kept": keep,
                "rejected_by": list(verdict.rejected_by),
                "faithfulness": round(verdict.faithfulness, 6),
                "tokens_in": draft.tokens_in,
                "tokens_out": draft.tokens_out,
            }
        tally[f"kept/{sample.task}"] += kept
