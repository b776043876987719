"""stage=eval: score models, and baselines, on held-out patients.

predictions.parquet   a row an answer; every score follows from it alone (`evaluation.aggregate`)
metrics.json          scores with intervals
scores.txt            the tables that the stage prints
report.html           tables, curves, cases
meds/                 the risk predictions in MEDS-Evaluation's schema
tb/                   every metric as a TensorBoard scalar

Risk questions are asked directly unless `answer` says otherwise; decisions as the stage was
trained. Predictions are kept in parts/ as they come, by one process or by several that share the
records: a stopped evaluation goes on where it was.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from zlib import crc32

import polars as pl
from rich.console import Console

from ehrr1 import runs
from ehrr1.config.names import TRAINING
from ehrr1.config.schema import Config, recorded
from ehrr1.errors import UserError
from ehrr1.evaluation import chat, shots
from ehrr1.evaluation.aggregate import summarise
from ehrr1.evaluation.baselines.bags import learn_baselines, of_kind
from ehrr1.evaluation.baselines.contexts import PromptReader
from ehrr1.evaluation.compare import compare
from ehrr1.evaluation.harness_logs import logged_predictions
from ehrr1.evaluation.list_only import list_baselines
from ehrr1.evaluation.matching import with_matches
from ehrr1.evaluation.meds_export import export
from ehrr1.evaluation.opening import Builders, opened, reader
from ehrr1.evaluation.predict import Predictor, Rows, Writing
from ehrr1.evaluation.prediction_store import PredictionStore, speed
from ehrr1.evaluation.predictions import DIRECT, SCHEMA, read_predictions
from ehrr1.evaluation.report import publish
from ehrr1.evaluation.subgroups import with_subgroups
from ehrr1.evaluation.tables import score_text
from ehrr1.evaluation.targets import Target, results
from ehrr1.evaluation.tolerance import with_tolerance
from ehrr1.files import read_yaml, remove, replacing, write_json, write_text
from ehrr1.graph.same_names import check_dictionary
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

console = Console(stderr=True)

MEASURED = ("seconds", "samples_per_second")
"""Last parts of the names of metrics that do not follow from the predictions."""


def run(cfg: Config, run: Run) -> dict[str, float | int]:
    """Ask every model what is not answered yet, add the baselines, score and publish.

    With `predictions` no model is asked: the answers are those of other frameworks' logs.
    """
    check_dictionary(cfg.concepts)  # the scores that need it come last
    whole = run.folder / "predictions.parquet"
    prepared = Prepared(run.input("prepare"))
    if not whole.exists():
        if cfg.predictions is None:
            table = asked(cfg, run)
        else:
            table = logged_predictions(cfg, prepared, suite_tasks(cfg))
        with replacing(whole) as path:
            with_subgroups(table, prepared).write_parquet(path)
    metrics = told(cfg, run.folder, read_predictions(whole), prepared)
    metrics |= speed(run.folder / "parts")
    remove(run.folder / "parts")
    return metrics


def asked(cfg: Config, run: Run) -> pl.DataFrame:
    """Return the predictions of the models, which are asked, and of the baselines."""
    study = study_of(cfg, run)
    wanted = results(cfg, run.inputs)
    tell_other_wording(cfg, run)
    builders: Builders = {}
    for result in wanted:
        ask(cfg, run, study, result, builders)
    parts = [PredictionStore(run.folder / "parts", result.name).read() for result in wanted]
    return pl.concat([*parts, baselines(cfg, run, study, wanted[-1])])


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
    study, share, shares = study_of(cfg, run), cfg.eval.shard or 0, cfg.eval.shards
    wanted = results(cfg, run.inputs)
    for result in wanted:
        ask(cfg, run, study, result, {}, share, shares)
    return sum(
        len(PredictionStore(run.folder / "parts", result.name).left(study.of(result, cfg)))
        for result in wanted
    )


def ask(
    cfg: Config,
    run: Run,
    study: Study,
    result: Target,
    builders: Builders,
    share: int = 0,
    shares: int = 1,
) -> None:
    """Let one model answer what is left of its samples; nothing is loaded where nothing is."""
    parts = PredictionStore(run.folder / "parts", result.name, share)
    left = [s for s in parts.left(study.of(result, cfg)) if share_of(s, shares) == share]
    if not left:
        return
    if cfg.engine.name == "anthropic":
        parts.save(chat.predict(cfg, study.prepared, result, left), len(left))
        return
    log = run.folder / "engine" / f"{share}.log"
    with opened(cfg, result, run.inputs, log, builders) as (engine, prompt_builder):
        predictor = Predictor(
            engine,
            prompt_builder,
            study.prepared,
            writing(cfg),
            Candidates.of(study.prepared, cfg.seed) if cfg.candidates == "list" else None,
            shots.heads(cfg, study.prepared, prompt_builder, study.tasks),
            study.chains,
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


def baselines(cfg: Config, run: Run, study: Study, result: Target) -> pl.DataFrame:
    """Return the rows of the baselines, kept like those of the models.

    They learn from the training split, which a benchmark file may lack, and choose their
    hyper-parameters on the validation split. `_cut` baselines read what the prompts of `result`
    show of a record, the others all of it; `list_` baselines read a list of candidates alone, where
    questions come with one.
    """
    part = run.folder / "parts" / "baselines.parquet"
    if not part.exists():
        samples = study.prepared.as_samples(study.index)
        train, validation = training_samples(cfg, study), tuning_samples(cfg, study)
        prompts = None if cfg.engine.name == "anthropic" else prompt_reader(cfg, run, study, result)
        with replacing(part) as path:
            found = learn_baselines(
                study.prepared,
                train,
                validation,
                samples,
                prompts,
                cfg.eval.baselines.max_features,
                cfg.seed,
            )
            if cfg.candidates == "list":
                lists = Candidates.of(study.prepared, cfg.seed)
                split, seed = cfg.eval.split, cfg.seed
                found.extend(list_baselines(study.prepared, lists, samples, split, seed))
            found.write_parquet(path)
    return read_predictions(part)


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
    cfg: Config, folder: Path, predictions: pl.DataFrame, prepared: Prepared | None
) -> dict[str, float | int]:
    """Return the metrics of predictions; write their tables and publish them in `folder`."""
    tasks = suite_tasks(cfg)
    predictions = with_matches(predictions, cfg.eval.matching)
    predictions = with_tolerance(predictions, cfg.concepts, cfg.eval.atc_level)
    metrics = summarise(predictions, tasks, cfg.eval.split, cfg.eval.bootstrap, cfg.seed)
    scored = predictions.filter(pl.col("split") == cfg.eval.split)
    write_text(folder / SCORES, score_text(scored, metrics, tasks))
    publish(cfg, folder, predictions, metrics, tasks, prepared)
    export(scored, folder / "meds")
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
        metrics = told(then, folder, predictions, prepared_of(folder))
        before = runs.metrics_of(folder)
        measured = {k: v for k, v in before.items() if k.split("/")[-1] in MEASURED}
        write_json(folder / "metrics.json", {**metrics, **measured})
    tell_result("eval", folder, console)
    console.print(f"scored again: {folder}")


def compare_runs(cfg: Config) -> None:
    """Set finished evaluations side by side, in a page and a table."""
    folders = [Path(folder) for folder in cfg.compare or []]
    target = runs.home(cfg) / "compare"
    compare(folders, target, cfg.eval.bootstrap, cfg.seed, cfg.concepts, cfg.eval.atc_level)
    console.print(f"compared: {target / 'report.html'}")


def writing(cfg: Config) -> Writing:
    """Return how much models write and how it is sampled."""
    limits, own = cfg.eval.max_new_tokens, cfg.eval
    return Writing(limits.think, limits.direct, own.draws, own.temperature, own.top_p, own.top_k)


def prepared_of(folder: Path) -> Prepared | None:
    """Return the records that an evaluation has read, or None if they were moved."""
    try:
        return Prepared(runs.find_inputs(recorded(folder), "eval")["prepare"])
    except UserError:
        return None
