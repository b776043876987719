"""stage=graph: count what goes together in training patients, then draw each sample's evidence.

graphs.jsonl, a line a sample: sample_id, task, prediction_time, graph (networkx node-link data).
Counts come from training patients only; graphs are drawn for training and validation samples.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from omegaconf import DictConfig

from ehrr1.files import write_jsonl
from ehrr1.graph.concepts import occurrences
from ehrr1.graph.cooccurrence import Cooccurrence, CooccurrenceCounter, EvidenceRule
from ehrr1.graph.evidence import covered, evidence_graph, to_json
from ehrr1.progress import track
from ehrr1.runs import Run
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.tasks.selection import by_context, select


def run(cfg: DictConfig, run: Run) -> dict[str, float | int]:
    """Write graphs.jsonl. Metrics: `coverage/<task>`, the share of samples with any evidence;
    `answers/<task>`, the mean share of their answers that has evidence; `linked/<kind>`, the
    share of the concepts of a kind (table or class) in the contexts that is evidence somewhere."""
    prepared = Prepared(run.input("prepare"))
    tasks = [task for task, entry in TASKS.items() if _has_set_answer(entry)]
    settings, seed = cfg.graph, cfg.seed
    counted = settings.counted_samples_per_task or settings.samples_per_task
    counts = count(prepared, chosen(prepared, "train", tasks, counted, seed))
    rule = EvidenceRule(settings.min_count, settings.min_support, settings.min_lift, settings.top)
    train = chosen(prepared, "train", tasks, settings.samples_per_task, seed)
    held_out = chosen(prepared, "validation", tasks, settings.validation_samples_per_task, seed)
    samples = [sample for sample in train + held_out if sample.task in counts]
    tally = Tally()
    write_jsonl(run.folder / "graphs.jsonl", _lines(prepared, samples, counts, rule, tally))
    return tally.metrics()


def chosen(
    prepared: Prepared, split: str, tasks: Sequence[str], per_task: int | None, seed: int
) -> list[Sample]:
    """A seeded choice of a split's samples."""
    return prepared.as_samples(select(prepared.scan(split, tasks), per_task, seed))


class Tally:
    """What the metrics need, summed while the graphs stream by."""

    def __init__(self) -> None:
        self.samples: Counter[str] = Counter()
        self.with_evidence: Counter[str] = Counter()
        self.answers: dict[str, float] = defaultdict(float)
        self.seen: set[tuple[str, str]] = set()
        self.linked: set[tuple[str, str]] = set()

    def metrics(self) -> dict[str, float | int]:
        found: dict[str, float | int] = {}
        for task, count in sorted(self.samples.items()):
            found[f"samples/{task}"] = count
            found[f"coverage/{task}"] = self.with_evidence[task] / count
            found[f"answers/{task}"] = self.answers[task] / count
        seen = Counter(kind for kind, _ in self.seen)
        linked = Counter(kind for kind, _ in self.linked)
        return found | {f"linked/{kind}": linked[kind] / seen[kind] for kind in sorted(seen)}


def count(prepared: Prepared, samples: Sequence[Sample]) -> dict[str, Cooccurrence]:
    """Co-occurrence of target items and history concepts, for each task by itself."""
    counters: dict[str, CooccurrenceCounter] = {}
    groups = by_context(samples)
    for group in track(groups.values(), "counting co-occurrence", len(groups)):
        history = {found.concept for found in occurrences(prepared.context(group[0]))}
        for sample in group:
            counter = counters.setdefault(sample.task, CooccurrenceCounter())
            counter.add(sample.target, sorted(history))
    return {task: counter.result() for task, counter in counters.items()}


def _has_set_answer(task: Any) -> bool:
    return task.kind == "decision" and task.metric != "rouge"


def _lines(
    prepared: Prepared,
    samples: Sequence[Sample],
    counts: dict[str, Cooccurrence],
    rule: EvidenceRule,
    tally: Tally,
) -> Iterator[dict[str, Any]]:
    groups = by_context(samples)
    for group in track(groups.values(), "drawing evidence graphs", len(groups)):
        context = prepared.context(group[0])
        tally.seen |= {found.concept for found in occurrences(context)}
        for sample in group:
            graph = evidence_graph(context, sample.target, counts[sample.task], rule)
            share = covered(graph)
            tally.samples[sample.task] += 1
            tally.with_evidence[sample.task] += share > 0
            tally.answers[sample.task] += share
            tally.linked |= {
                (data["table"], data["label"])
                for _, data in graph.nodes(data=True)
                if data["kind"] == "concept"
            }
            yield {
                "sample_id": sample.sample_id,
                "task": sample.task,
                "prediction_time": sample.prediction_time.isoformat(),
                "graph": to_json(graph),
            }
