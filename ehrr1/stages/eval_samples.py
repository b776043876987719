"""The samples of stage=eval: those that all models answer, and those that baselines learn from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ehrr1 import runs
from ehrr1.config.schema import Config
from ehrr1.damage import DamagedError
from ehrr1.errors import UserError
from ehrr1.evaluation import shots
from ehrr1.evaluation.aggregate import STARTS
from ehrr1.evaluation.targets import Target
from ehrr1.reasoning.chain import without_results
from ehrr1.runs import Run
from ehrr1.stages.given_chains import CHAINS
from ehrr1.stages.reason import kept_chains
from ehrr1.tasks.candidates import Candidates
from ehrr1.tasks.catalog import ALL_TASKS, OWN, SUITES, TASKS
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.tasks.selection import select
from ehrr1.terminal import plain_console

console = plain_console(stderr=True)

TUNED_SHARE = 4
"""The baselines have one validation sample per task for this many training samples."""


@dataclass(frozen=True)
class Study:
    """The samples that all models answer.

    `index` has those of the split that is scored, `calibration` risk samples of the validation
    split that fit the calibration; with `eval.chains` both have only samples with a chain.
    """

    prepared: Prepared
    tasks: tuple[str, ...]
    index: pl.DataFrame
    calibration: pl.DataFrame
    chains: dict[str, str]

    def of(self, result: Target, cfg: Config) -> list[Sample]:
        """Return the samples that a result answers.

        The untrained model, which writes to the limit, has fewer decisions.
        """
        risk, decision = (rows_of(self.index, kind) for kind in ("risk", "decision"))
        if result.model in STARTS:
            decision = select(decision, cfg.eval.untrained_samples_per_task, cfg.seed)
        parts = [risk, self.calibration] if result.risk else []
        parts += [decision] if result.decision else []
        return [sample for part in parts for sample in self.prepared.as_samples(part)]


def study_of(cfg: Config, run: Run) -> Study:
    """Return the samples that are answered. Raises UserError where there are none."""
    prepared = Prepared(run.input("prepare"))
    tasks = suite_tasks(cfg)
    chains = chains_of(cfg, run.inputs)
    index = choose_samples(cfg, prepared, tasks, chains)
    if index.is_empty():
        raise UserError(
            f"eval.split={cfg.eval.split}: it has no samples of suite {cfg.eval.suite}; "
            "prepare more patients (data.subjects) or a larger share of them (data.split)"
        )
    if cfg.candidates == "list":
        check_candidates(cfg, prepared, index)
    count, risk = cfg.eval.calibration_samples_per_task, rows_of(index, "risk")["task"].unique()
    pool = having(prepared.scan("validation", risk.to_list()), chains)
    none = count == 0 or cfg.eval.split == "validation" or cfg.engine.name == "anthropic"
    calibration = select(pool, count, cfg.seed)
    calibration = calibration.clear() if none else calibration
    return Study(prepared, tasks, index, calibration, chains)


def chains_of(cfg: Config, inputs: Mapping[str, Path]) -> dict[str, str]:
    """sample_id -> the chain that is given, without its results; empty without `eval.chains`.

    Raises UserError where there is none.
    """
    if cfg.eval.chains is None:
        return {}
    place = inputs["chains"] if cfg.eval.chains == runs.GIVEN else Path(cfg.eval.chains)
    path = place / CHAINS if place.is_dir() else place
    try:
        kept = kept_chains(path)
    except (DamagedError, OSError) as error:
        raise UserError(
            f"eval.chains={cfg.eval.chains}: {error}; a chains.jsonl of stage=chains is needed"
        ) from error
    return {name: text for name, (chain, _) in kept.items() if (text := without_results(chain))}


def having(index: pl.LazyFrame, chains: Mapping[str, str]) -> pl.LazyFrame:
    """Return the samples that have a chain, where some are given."""
    return index.filter(pl.col("sample_id").is_in(list(chains))) if chains else index


def check_candidates(cfg: Config, prepared: Prepared, index: pl.DataFrame) -> None:
    """Raise UserError where decision rows of a file have no list of candidates.

    A stay's ICD titles (`cdm_icd`) never have one, and are asked without.
    """
    if "candidates" not in index.columns:
        return
    bare = index.filter(pl.col("candidates").list.len() == 0)
    lacking = Candidates.of(prepared, cfg.seed).lacking(bare["task"].unique().sort())
    rows = bare.filter(pl.col("task").is_in(lacking)).height
    told = f"{rows:,} samples bring no candidates ({', '.join(lacking)})"
    if any(task in TASKS for task in lacking):
        raise UserError(
            f"candidates=list: {told}; put the release's lists beside the file "
            "(cache/similar_item/<task>.csv or cache/item_set/<task>.csv) and prepare it again, or "
            "leave candidates out"
        )
    if lacking:
        console.print(f"candidates=list: {told} and are asked without a list")


def suite_tasks(cfg: Config) -> tuple[str, ...]:
    """Return the tasks of the suite `eval.suite`, and that of the user's own labels."""
    return (*SUITES[cfg.eval.suite], OWN)


def choose_samples(
    cfg: Config, prepared: Prepared, tasks: Sequence[str], chains: Mapping[str, str]
) -> pl.DataFrame:
    """Return the rows of the index that every model answers.

    Decisions are written word by word and cost far more than risk, so they may have a smaller
    number of their own. Raises UserError where `eval.chains` has no chain of these samples.
    """
    whole = prepared.scan(cfg.eval.split, tasks)
    if cfg.eval.chains is not None:
        told = [frame.select(pl.len()).collect().item() for frame in (having(whole, chains), whole)]
        if not chains or not told[0]:
            raise UserError(
                f"eval.chains={cfg.eval.chains}: no sample of eval.split={cfg.eval.split} has a "
                "chain; choose eval.split=validation, or chains of these samples"
            )
        console.print(
            f"eval.chains: {told[0]:,} of {told[1]:,} samples have a chain; others are not asked"
        )
    counts = {"risk": cfg.eval.samples_per_task, "decision": cfg.eval.decision_samples_per_task}
    chosen = []
    for kind, count in counts.items():
        of_it = [task for task in tasks if ALL_TASKS[task].kind == kind]
        pool = having(prepared.scan(cfg.eval.split, of_it), chains)
        chosen.append(select(pool, count or cfg.eval.samples_per_task, cfg.seed))
    return pl.concat(chosen)


def rows_of(index: pl.DataFrame, kind: str) -> pl.DataFrame:
    """Return the rows of the index whose task is of this kind."""
    return index.filter(
        pl.col("task").is_in([key for key, task in ALL_TASKS.items() if task.kind == kind])
    )


def training_samples(cfg: Config, study: Study) -> list[Sample]:
    """Return the samples that baselines learn from.

    Where models are shown examples (`eval.shots`), these are the examples.
    """
    if cfg.eval.shots:
        return shots.chosen(cfg, study.prepared, study.tasks)
    pool = study.prepared.scan("train", study.index["task"].unique().to_list())
    chosen = select(pool, cfg.eval.baselines.samples_per_task, cfg.seed)
    return study.prepared.as_samples(chosen)


def tuning_samples(cfg: Config, study: Study) -> list[Sample]:
    """Return the samples of the validation split for choosing the baselines' hyper-parameters.

    There are none where the validation split is scored, or where models are shown a few examples
    (`eval.shots`): the baselines then have no more samples than those.
    """
    if cfg.eval.split == "validation" or cfg.eval.shots:
        return []
    pool = study.prepared.scan("validation", study.index["task"].unique().to_list())
    count = cfg.eval.baselines.samples_per_task
    chosen = select(pool, None if count is None else max(1, count // TUNED_SHARE), cfg.seed)
    return study.prepared.as_samples(chosen)
