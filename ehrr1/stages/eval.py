"""stage=eval: score models, and baselines, on held-out patients.

predictions.parquet   a row an answer; every score follows from it alone (`evaluation.aggregate`)
metrics.json          scores with intervals
scores.txt            the tables that the stage prints
report.html           tables, curves, cases
cards/                the model card of each trained model, with its scores
meds/                 the risk predictions in MEDS-Evaluation's schema
tb/                   every metric as a TensorBoard scalar

Risk questions are asked directly unless `answer` says otherwise; decisions as the stage was
trained. Predictions are kept in parts/ as they come, by one process or by several that share the
records: a stopped evaluation goes on where it was.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from zlib import crc32

import polars as pl
import torch

from ehrr1 import runs
from ehrr1.config.names import TRAINING
from ehrr1.config.schema import Config, recorded
from ehrr1.errors import UserError
from ehrr1.evaluation import cards, chat, shots
from ehrr1.evaluation.about import about
from ehrr1.evaluation.aggregate import summarise
from ehrr1.evaluation.baselines.bags import Parts, learn_baselines, of_kind
from ehrr1.evaluation.baselines.contexts import PromptReader
from ehrr1.evaluation.compare import compare
from ehrr1.evaluation.harness_logs import logged_predictions
from ehrr1.evaluation.list_only import list_baselines
from ehrr1.evaluation.matching import with_matches
from ehrr1.evaluation.meds_export import export
from ehrr1.evaluation.opening import Builders, opened, reader
from ehrr1.evaluation.phases import Phases
from ehrr1.evaluation.predict import Predictor, Rows, Writing
from ehrr1.evaluation.prediction_store import PredictionStore, speed
from ehrr1.evaluation.predictions import DIRECT, SCHEMA, read_predictions
from ehrr1.evaluation.report import publish
from ehrr1.evaluation.subgroups import with_subgroups
from ehrr1.evaluation.tables import score_text
from ehrr1.evaluation.targets import Target, results
from ehrr1.evaluation.tolerance import with_tolerance
from ehrr1.evaluation.tree_memory import TreeMemory
from ehrr1.files import read_yaml, remove, replacing, write_text
from ehrr1.graph.same_names import check_dictionary
from ehrr1.progress import beside
from ehrr1.runs import Run
from ehrr1.stages.ending import SCORES, tell_result
from ehrr1.stages.eval_samples import (
    Study,
    study_of,
    suite_tasks,
    training_samples,
    tuning_samples,
)
from ehrr1.tasks.candidates import Candidates
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.terminal import plain_console

console = plain_console(stderr=True)

BASELINES = "parts/baselines.parquet"
"""Rows of the baselines, kept like those of the models."""

MEASURED = re.compile(r"(cpu_)?seconds(/.*)?|(.*/)?samples_per_second")
"""Names of metrics that do not follow from the predictions."""


def run(cfg: Config, run: Run) -> dict[str, float | int]:
    """Ask every model what is not answered yet, add the baselines, score and publish.

    With `predictions` no model is asked: the answers are those of other frameworks' logs.
    """
    check_dictionary(cfg.concepts)  # the scores that need it come last
    whole = run.folder / "predictions.parquet"
    prepared, phases = Prepared(run.input("prepare")), Phases()
    if not whole.exists():
        if cfg.predictions is None:
            table = asked(cfg, run, phases)
        else:
            table = logged_predictions(cfg, prepared, suite_tasks(cfg))
        with replacing(whole) as path:
            with_subgroups(table, prepared).write_parquet(path)
    metrics = told(cfg, run.folder, read_predictions(whole), run.inputs, phases)
    metrics |= speed(run.folder / "parts") | phases.metrics()
    remove(run.folder / "parts")
    return metrics


def asked(cfg: Config, run: Run, phases: Phases) -> pl.DataFrame:
    """Return the predictions of the models, which are asked, and of the baselines.

    The baselines are learnt meanwhile, in a process beside this one.
    """
    with phases.of("samples"):
        study = study_of(cfg, run)
    wanted = results(cfg, run.inputs)
    tell_other_wording(cfg, run)
    shared = Shared(TreeMemory() if len(wanted) > 1 else TreeMemory(0), phases)
    with learning(cfg, run, study, wanted[-1]) as learnt:
        for result in wanted:
            with cores_left_to(learnt):
                ask(cfg, run, study, result, shared)
        if learnt is not None:
            if not learnt.done():
                console.print("the models have answered; the baselines are still being learnt")
            with phases.of("waiting"):
                phases.include(learnt.result())
    parts = [PredictionStore(run.folder / "parts", result.name).read() for result in wanted]
    return pl.concat([*parts, read_predictions(run.folder / BASELINES)])


@dataclass(frozen=True)
class Shared:
    """The common parts of the results of one evaluation: tokens, and the clock of its phases."""

    trees: TreeMemory
    phases: Phases
    builders: Builders = field(default_factory=dict)


def tell_other_wording(cfg: Config, run: Run) -> None:
    """Say where a model is asked in another style than it was trained in."""
    for stage in (stage for stage in TRAINING if stage in run.inputs):
        settings = read_yaml(run.inputs[stage] / "config.yaml")
        trained = settings.get("wording", "file")
        if {trained, cfg.wording} in ({"file", "release"}, {"ours", "release"}):
            console.print(
                f"{stage} was trained with wording={trained} and is asked with "
                f"wording={cfg.wording}: set wording={trained} to ask as it was trained"
            )


def run_share(cfg: Config, run: Run) -> int:
    """Answer this process's share of the records; returns how many answers are missing then."""
    check_dictionary(cfg.concepts)
    study, wanted = study_of(cfg, run), results(cfg, run.inputs)
    shared = Shared(TreeMemory() if len(wanted) > 1 else TreeMemory(0), Phases())
    for result in wanted:
        ask(cfg, run, study, result, shared)
    return sum(
        len(PredictionStore(run.folder / "parts", result.name).left(study.of(result, cfg)))
        for result in wanted
    )


def ask(cfg: Config, run: Run, study: Study, result: Target, shared: Shared) -> None:
    """Let one model answer what is left of its samples; nothing is loaded where nothing is.

    With `eval.shard` the samples are this process's share.
    """
    share, shares = cfg.eval.shard or 0, 1 if cfg.eval.shard is None else cfg.eval.shards
    parts = PredictionStore(run.folder / "parts", result.name, share)
    left = [s for s in parts.left(study.of(result, cfg)) if share_of(s, shares) == share]
    if not left:
        return
    if cfg.engine.name == "anthropic":
        parts.save(chat.predict(cfg, study.prepared, result, left), len(left))
        return
    log = run.folder / "engine" / f"{share}.log"
    with ExitStack() as stack:
        with shared.phases.of("models"):
            engine, prompt_builder = stack.enter_context(
                opened(cfg, result, run.inputs, log, shared.builders)
            )
        predictor = Predictor(
            engine,
            prompt_builder,
            study.prepared,
            writing(cfg),
            Candidates.of(study.prepared, cfg.seed) if cfg.candidates == "list" else None,
            shots.heads(cfg, study.prepared, prompt_builder, study.tasks),
            study.chains,
            shared.trees,
            shared.phases,
        )
        parts.save(answers(predictor, result, left, cfg.seed), len(left))


def answers(
    predictor: Predictor, result: Target, samples: Sequence[Sample], seed: int
) -> Iterator[Rows]:
    """Yield the answers of one model, risk first: it is quick, and shows soonest what it can do."""
    risk, decisions = of_kind(samples, "risk"), of_kind(samples, "decision")
    if result.risk is not None:
        yield from predictor.risk(risk, result.risk)
    if result.decision is not None:
        yield from predictor.decisions(decisions, result.decision, seed)


def share_of(sample: Sample, shares: int) -> int:
    """Return the process that answers a sample, of `shares`; a record's questions stay together."""
    return crc32(sample.context_id.encode()) % shares


@contextmanager
def learning(
    cfg: Config, run: Run, study: Study, result: Target
) -> Iterator[Future[Phases] | None]:
    """Let a process beside this one learn the baselines, where their rows are not there yet."""
    if (run.folder / BASELINES).exists():
        yield None
        return
    plain = replace(study, prepared=Prepared(study.prepared.folder))  # without open files
    with beside(partial(learn, cfg, run, plain, result)) as learnt:
        yield learnt


@contextmanager
def cores_left_to(learnt: Future[Phases] | None) -> Iterator[None]:
    """Let PyTorch use two threads fewer on a CPU, and at least one, while baselines are learnt.

    Its threads wait for each other after each operation: with one core too few all of them are
    slower than a single one.
    """
    threads = torch.get_num_threads()
    alone = learnt is None or learnt.done()
    torch.set_num_threads(threads if alone else max(1, threads - 2))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def learn(cfg: Config, run: Run, study: Study, result: Target) -> Phases:
    """Write the rows of the baselines, and return the seconds of their phases.

    They learn from the training split, which a benchmark file may lack, and choose their
    hyper-parameters on the validation split. `_cut` baselines read what the prompts of `result`
    show of a record, the others all of it; `list_` baselines read a list of candidates alone, where
    questions come with one.
    """
    phases, split, seed = Phases(), cfg.eval.split, cfg.seed
    with phases.of("baselines/samples"):
        samples = study.prepared.as_samples(study.index)
        parts = Parts(training_samples(cfg, study), tuning_samples(cfg, study), samples)
    prompts = None if cfg.engine.name == "anthropic" else prompt_reader(cfg, run, study, result)
    most = cfg.eval.baselines.max_features
    found = learn_baselines(study.prepared, parts, prompts, most, seed, phases)
    if cfg.candidates == "list":
        lists = Candidates.of(study.prepared, seed)
        with phases.of("baselines/lists"):
            found.extend(list_baselines(study.prepared, lists, samples, split, seed))
    with replacing(run.folder / BASELINES) as path:
        found.write_parquet(path)
    return phases


def prompt_reader(cfg: Config, run: Run, study: Study, result: Target) -> PromptReader:
    """Return the prompts of `result`, which decide what `_cut` baselines read."""
    prompt_builder = reader(cfg, result, run.inputs, {})
    risk, decision = result.risk or result.decision, result.decision or result.risk
    return PromptReader(
        prompt_builder,
        risk or DIRECT,
        decision or DIRECT,
        Candidates.of(study.prepared, cfg.seed) if cfg.candidates == "list" else None,
        shots.heads(cfg, study.prepared, prompt_builder, study.tasks),
    )


def told(
    cfg: Config,
    folder: Path,
    predictions: pl.DataFrame,
    inputs: Mapping[str, Path],
    phases: Phases,
) -> dict[str, float | int]:
    """Return the metrics of predictions; write their tables and publish them in `folder`.

    `inputs` are the runs that were read; none are there if they were moved.
    """
    tasks = suite_tasks(cfg)
    prepared = Prepared(inputs["prepare"]) if "prepare" in inputs else None
    with phases.of("scores"):
        predictions = with_matches(predictions, cfg.eval.matching)
        predictions = with_tolerance(predictions, cfg.concepts, cfg.eval.atc_level)
        metrics = summarise(predictions, tasks, cfg.eval.split, cfg.eval.bootstrap, cfg.seed)
    with phases.of("report"):
        scored = predictions.filter(pl.col("split") == cfg.eval.split)
        write_text(folder / SCORES, score_text(scored, metrics, tasks))
        publish(cfg, folder, predictions, metrics, tasks, prepared)
        export(scored, folder / "meds")
        is_open = prepared is not None and runs.data_is_open(prepared.folder)
        cards.write(folder, inputs, scored, metrics, tasks, about(cfg, prepared), is_open)
    return metrics


def rescore(cfg: Config) -> None:
    """Score the predictions of a finished evaluation again, without a model or records.

    `eval.bootstrap`, `eval.matching`, `eval.atc_level` and `concepts` are those of this command.
    Raises UserError for predictions of an earlier version.
    """
    folder = Path(str(cfg.rescore))
    then = recorded(folder)
    then.eval.bootstrap, then.eval.matching = cfg.eval.bootstrap, cfg.eval.matching
    then.eval.atc_level, then.concepts = cfg.eval.atc_level, cfg.concepts
    predictions = read_predictions(folder / "predictions.parquet")
    if missing := [name for name in SCHEMA if name not in predictions.columns]:
        raise UserError(
            f"rescore={folder}: an earlier version made its predictions (no {', '.join(missing)}); "
            "evaluate again with overwrite=true"
        )
    with runs.held(folder):
        metrics = told(then, folder, predictions, runs.inputs_of(folder, "eval"), Phases())
        before = runs.metrics_of(folder)
        measured = {name: value for name, value in before.items() if MEASURED.fullmatch(name)}
        runs.rewrite_metrics(folder, {**metrics, **measured})
    tell_result("eval", folder, console)
    console.print(f"scored again: {folder}", soft_wrap=True)


def compare_runs(cfg: Config) -> None:
    """Set finished evaluations side by side, in a page and a table."""
    folders = [Path(folder) for folder in cfg.compare or []]
    target = runs.home(cfg) / "compare"
    compare(folders, target, cfg.eval.bootstrap, cfg.seed, cfg.concepts, cfg.eval.atc_level)
    console.print(f"compared: {target / 'report.html'}", soft_wrap=True)


def writing(cfg: Config) -> Writing:
    """Return how much models write and how it is sampled."""
    limits, own = cfg.eval.max_new_tokens, cfg.eval
    return Writing(limits.think, limits.direct, own.draws, own.temperature, own.top_p, own.top_k)
