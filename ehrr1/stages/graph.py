"""stage=graph: count what goes together in training patients, then draw each sample's evidence.

    counts/<task>.npz   co-occurrence, over training patients only
    graphs.jsonl        a line a sample: sample_id, task, prediction_time, graph (node-link data)

Contexts are read by several processes, PART at a time. A run that was killed goes on with the
counts and the parts of graphs.jsonl that are there. Knowledge bases, indices and what free texts
mention are kept for all runs under `concepts.cache`.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ehrr1.config.records import Graph
from ehrr1.config.schema import Config
from ehrr1.files import read_json, read_jsonl, remove, write_json, write_jsonl
from ehrr1.graph.associations import EvidenceRule, passing, significance_bound
from ehrr1.graph.concepts import Concept
from ehrr1.graph.cooccurrence import Cooccurrence, CooccurrenceCounter
from ehrr1.graph.drawing import (
    Drawing,
    Part,
    PatientSamples,
    Reading,
    Texts,
    count_part,
    draw_part,
    rows_part,
    texts_of,
)
from ehrr1.graph.knowledge import PathRule
from ehrr1.graph.sources import Dictionary, knowledge_folder, open_dictionary
from ehrr1.graph.statistics import Tally, linked_shares
from ehrr1.graph.weighing import Rows, Weighed, joined, weigh_rows
from ehrr1.progress import in_processes
from ehrr1.runs import Run
from ehrr1.tasks.catalog import TASKS
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.tasks.selection import by_context, select

PART = 256
"""Contexts that one process reads at a time."""


def run(cfg: Config, run: Run) -> dict[str, float | int]:
    """Write graphs.jsonl.

    Metrics: those of `graph.statistics`, as `pairs/<task>` the number of pairs of an answer and a
    concept that are evidence, of all that were counted, and as `likely/f1/<task>` the F1 of what
    all evidence together calls for, on training samples of other patients.
    """
    prepared = Prepared(run.input("prepare"))
    counted, drawn = chosen_samples(prepared, cfg)
    dictionary = open_dictionary(cfg.concepts)
    knowledge = knowledge_folder(cfg.concepts) if cfg.graph.knowledge else None
    parts = parts_of(counted, drawn)
    to_weigh = parts_to_weigh(prepared, drawn, cfg)
    if dictionary is not None:
        read_texts(prepared, [*parts, *to_weigh], dictionary, cfg)
    reading = Reading(
        prepared.folder,
        cfg.graph.counting == "release",
        cached_texts(dictionary, cfg),
        cfg.graph.record_chars,
    )
    counts = counted_tasks(run.folder / "counts", reading, parts, cfg.graph.workers)
    weighed, likely = None, {}
    if to_weigh:
        weighed = run.folder / "weighed"
        likely = weigh(weighed, reading, to_weigh, drawn, cfg)
    history = {concept for one in counts.values() for concept in one.history}
    ids = linked_names(counts, history, dictionary)
    rules = {task: evidence_rule(cfg.graph, task, one) for task, one in counts.items()}
    drawing = Drawing(
        reading=reading,
        counts=run.folder / "counts",
        rules=rules,
        ids=ids,
        knowledge=knowledge,
        path_rule=path_rule(cfg.graph),
        require_path=cfg.graph.require_path,
        min_routine=cfg.graph.min_routine if cfg.graph.evidence == "cooccurrence" else None,
        candidates=cfg.graph.candidates if cfg.graph.evidence == "cooccurrence" else 0,
        weighed=weighed,
        random_seed=cfg.seed if cfg.graph.evidence == "random" else None,
    )
    tally = draw(run.folder, drawing, parts, cfg.graph.workers)
    pairs = {f"pairs/{task}": passing(one, rules[task]) for task, one in counts.items()}
    return tally.metrics() | pairs | likely | linked_shares(history, ids)


def chosen_samples(prepared: Prepared, cfg: Config) -> tuple[list[Sample], list[Sample]]:
    """Training samples to count (as released: all), and training and validation samples to draw.

    Without evidence (graph.evidence=none) nothing is counted. A task that has no training sample
    has no graph.
    """
    settings = cfg.graph
    tasks = [task for task, entry in TASKS.items() if has_graph(entry, settings.risk)]

    def choose(split: str, per_task: int | None) -> list[Sample]:
        return prepared.as_samples(select(prepared.scan(split, tasks), per_task, cfg.seed))

    train = choose("train", settings.samples_per_task)
    per_task = settings.counted_samples_per_task or settings.samples_per_task
    if settings.counting == "release":
        per_task = None
    counted = choose("train", per_task) if settings.evidence != "none" else []
    known = {sample.task for sample in train}
    held_out = choose("validation", settings.validation_samples_per_task)
    return counted, train + [sample for sample in held_out if sample.task in known]


def has_graph(task: Any, risk: bool) -> bool:
    """Return whether a task has a graph: decisions on items; with `graph.risk` yes/no questions."""
    return (task.kind == "decision" and task.metric != "rouge") or (risk and task.kind == "risk")


def read_texts(
    prepared: Prepared, parts: Sequence[Part], dictionary: Dictionary, cfg: Config
) -> None:
    """Find what the free texts of these patients' contexts mention, each distinct text once."""
    texts: set[str] = set()
    find = partial(texts_of, prepared.folder)
    for some in in_processes(find, parts, "finding texts", cfg.graph.workers):
        texts |= some
    dictionary.read(sorted(texts), cfg.concepts.workers)


def cached_texts(dictionary: Dictionary | None, cfg: Config) -> Texts | None:
    """Return the cache of mentions and its source, None without a dictionary."""
    return None if dictionary is None else (Path(cfg.concepts.cache), dictionary.source)


def counted_tasks(
    folder: Path, reading: Reading, parts: Sequence[Part], workers: int | None
) -> dict[str, Cooccurrence]:
    """Return co-occurrence by task, from `folder` where an earlier try has left it whole."""
    done = folder / "tasks.json"
    if done.exists():
        return {task: Cooccurrence.load(folder / f"{task}.npz") for task in read_json(done)}
    counters: dict[str, CooccurrenceCounter] = {}
    read = partial(count_part, reading)
    for some in in_processes(read, parts, "counting co-occurrence", workers):
        for task, counts in some.items():
            counters.setdefault(task, CooccurrenceCounter(reading.either)).merge(counts)
    found = {task: counter.result() for task, counter in sorted(counters.items())}
    for task, counts in found.items():
        counts.save(folder / f"{task}.npz")
    write_json(done, list(found))
    return found


def parts_to_weigh(prepared: Prepared, drawn: Sequence[Sample], cfg: Config) -> list[Part]:
    """Training samples whose concepts are weighed together, and those that are only scored.

    None without `graph.weighed_samples_per_task`, or for graphs with other evidence.
    """
    if cfg.graph.weighed_samples_per_task is None or cfg.graph.evidence != "cooccurrence":
        return []
    tasks = sorted({sample.task for sample in drawn if TASKS[sample.task].kind == "decision"})
    if not tasks:
        return []
    index = select(prepared.scan("train", tasks), cfg.graph.weighed_samples_per_task, cfg.seed)
    held_out = [one for one in drawn if one.split != "train" and one.task in tasks]
    return parts_of(prepared.as_samples(index), held_out)


def weigh(
    folder: Path, reading: Reading, parts: Sequence[Part], drawn: Sequence[Sample], cfg: Config
) -> dict[str, float]:
    """Write what all concepts of each drawn record together make likely; return metrics.

    A file a task: sample_id -> items, the likeliest first, and how many of them are likely.
    """
    if (folder / "tasks.json").exists():
        return dict(read_json(folder / "tasks.json"))
    rows: dict[str, list[Rows]] = {}
    read = partial(rows_part, reading)
    for some in in_processes(read, parts, "reading records to weigh", cfg.graph.workers):
        for task, own in some.items():
            rows.setdefault(task, []).append(own)
    names = {sample.sample_id for sample in drawn}
    fit = partial(weigh_parts, cfg.graph.candidates)
    metrics = {}
    tasks = sorted(rows)
    scored = in_processes(fit, [rows[task] for task in tasks], "weighing", cfg.graph.workers)
    for task, (found, f1) in zip(tasks, scored, strict=True):
        write_json(folder / f"{task}.json", {k: v for k, v in found.items() if k in names})
        metrics[f"likely/f1/{task}"] = f1
    write_json(folder / "tasks.json", metrics)
    return metrics


def weigh_parts(most: int, parts: Sequence[Rows]) -> tuple[dict[str, Weighed], float]:
    """Weigh the samples of a task, of which each part has some."""
    return weigh_rows(joined(parts), most)


def linked_names(
    counts: dict[str, Cooccurrence], history: set[Concept], dictionary: Dictionary | None
) -> dict[str, str]:
    """Return the dictionary's id of each item name that it has; each name is looked up once."""
    if dictionary is None:
        return {}
    names = {one.name for one in history if one.is_shown and not one.is_text}
    return dictionary.link(sorted(names.union(*(one.targets for one in counts.values()))))


def evidence_rule(settings: Graph, task: str, counts: Cooccurrence) -> EvidenceRule:
    """Return the rule of what is evidence in a task; the bound on p follows from all its pairs.

    `graph.min_probability` does not apply to risk tasks, whose chains also argue for the rarer
    outcome.
    """
    bound, risk = 1.0, TASKS[task].kind == "risk"
    if settings.max_fdr is not None:
        bound = significance_bound(counts, settings.min_count, settings.max_fdr)
    return EvidenceRule(
        min_count=settings.min_count,
        min_support=settings.min_support,
        min_lift=settings.risk_min_lift if risk else settings.min_lift,
        top=settings.top,
        min_lift_low=settings.min_lift_low or 0.0,
        min_probability=0.0 if risk else settings.min_probability or 0.0,
        min_npmi=-1.0 if settings.min_npmi is None else settings.min_npmi,
        max_p=bound,
    )


def path_rule(settings: Graph) -> PathRule:
    """Return the rule by which paths are searched."""
    relations = None if settings.relations is None else tuple(settings.relations)
    meaningful = settings.path_rule == "meaningful"
    return PathRule(
        max_hops=settings.max_hops,
        max_degree=settings.max_degree,
        relations=relations,
        meaningful=meaningful,
        max_narrower=settings.max_narrower,
    )


def draw(folder: Path, drawing: Drawing, parts: Sequence[Part], workers: int | None) -> Tally:
    """Draw the graphs part by part, then join the parts as graphs.jsonl."""
    files = [folder / "parts" / f"{number:06}.jsonl" for number in range(len(parts))]
    left = [(part, file) for part, file in zip(parts, files, strict=True) if not file.exists()]
    lines = in_processes(
        partial(draw_part, drawing), [part for part, _ in left], "drawing evidence graphs", workers
    )
    for (_, file), some in zip(left, lines, strict=True):
        write_jsonl(file, some)
    tally = Tally()
    write_jsonl(folder / "graphs.jsonl", _joined(files, tally))
    remove(folder / "parts")
    return tally


def _joined(files: Sequence[Path], tally: Tally) -> Iterator[dict[str, Any]]:
    for file in files:
        for row in read_jsonl(file, ("sample_id", "task", "graph")):
            tally.add(row)
            yield row


def parts_of(counted: Sequence[Sample], drawn: Sequence[Sample]) -> list[Part]:
    """Divide samples by patient, about PART contexts at a time.

    All samples of a patient are in one part: they count together, and a graph rests on the counts
    of other patients.
    """
    groups: dict[int, tuple[list[Sample], list[Sample]]] = {}
    for place, samples in enumerate((drawn, counted)):
        for sample in samples:
            groups.setdefault(sample.subject_id, ([], []))[place].append(sample)
    parts: list[list[PatientSamples]] = []
    room = 0
    for own_drawn, own_counted in groups.values():
        patient = PatientSamples(
            list(by_context(own_counted).values()), list(by_context(own_drawn).values())
        )
        if room <= 0:
            parts.append([])
            room = PART
        parts[-1].append(patient)
        room -= len(patient.counted) + len(patient.drawn)
    return list(parts)
