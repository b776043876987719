"""From predictions to scores: per task and macro, each with its bootstrap replicates."""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrr1.evaluation.bootstrap import Resamples
from ehrr1.evaluation.calibration import Calibrator, recalibrated
from ehrr1.evaluation.matching import MATCHED
from ehrr1.evaluation.metrics import (
    macro,
    pass_at_k,
    weighted_auprc,
    weighted_auroc,
    weighted_brier,
    weighted_ece,
    weighted_log_loss,
)
from ehrr1.evaluation.tolerance import TOLERANT
from ehrr1.scoring.consistency import agreed
from ehrr1.scoring.sets import SetScores, normalise, reduce, set_scores
from ehrr1.scoring.texts import rouge
from ehrr1.tasks.catalog import ALL_TASKS

Floats = NDArray[np.float64]
Replicates = dict[str, Floats]
"""Metric name -> [1 + replicates]; the first is the estimate itself."""

MAX_ELEMENTS = 8_000_000
"""Weights held at once (64 MB): larger tasks go through in blocks of replicates."""

CALIBRATION = {"brier": weighted_brier, "ece": weighted_ece, "log_loss": weighted_log_loss}

EMPTY = "empty answer"


def score(
    predictions: pl.DataFrame,
    resamples: Resamples,
    tasks: Sequence[str],
    calibrator: Calibrator | None = None,
    main_only: bool = False,
) -> Replicates:
    """Score one result's predictions on `tasks`, for the study and all its resamples.

    Names: `<task>/<metric>` (docs/evaluation.md) and the mean over tasks, `risk/<metric>/macro` and
    `decision/<metric>/macro`. With a `calibrator` the scores of recalibrated probabilities are
    `<metric>_calibrated`. `main_only`: AUROC and F1. A risk task with one class is left out, also
    of the macro mean (see `one_class`), and so are rows without a probability. A balanced task
    has AUROC only: the others depend on the prevalence, which was made up.
    """
    found: Replicates = {}
    by_task = {key[0]: rows for key, rows in predictions.partition_by("task", as_dict=True).items()}
    for task in tasks:
        if task not in by_task:
            continue
        rows = by_task[task]
        if ALL_TASKS[task].kind == "risk":
            values = _risk(rows, resamples, calibrator, main_only)
        elif ALL_TASKS[task].target == "text":
            values = {} if main_only else _means(rows, resamples, _texts(rows))
        else:
            values = _decision(rows, resamples, main_only)
        found |= {f"{task}/{name}": array for name, array in values.items()}
    return found | _macros(found)


def _macros(found: Replicates) -> Replicates:
    """Return the mean of each metric over the tasks that have it."""
    arrays: dict[str, list[Floats]] = {}
    for name, array in found.items():
        task, metric = name.split("/")
        arrays.setdefault(f"{ALL_TASKS[task].kind}/{metric}/macro", []).append(array)
    return {name: macro(several) for name, several in arrays.items()}


def one_class(predictions: pl.DataFrame) -> list[str]:
    """Return the risk tasks whose targets are all yes or all no, which have no AUROC."""
    risk = [key for key, task in ALL_TASKS.items() if task.kind == "risk"]
    targets = predictions.filter(pl.col("task").is_in(risk)).group_by("task")
    classes = targets.agg(pl.col("target").n_unique())
    return sorted(classes.filter(pl.col("target") < 2)["task"].to_list())


def counts(predictions: pl.DataFrame) -> dict[str, int]:
    """Count samples, patients, empty answers and answers that could not be read, by task.

    Names: `samples/<task>`, `patients/<task>`, `empty_answers/<task>`, `parse_failures/<task>`; a
    wrong answer is no parse failure.
    """
    problem = pl.col("problem")
    table = predictions.group_by("task").agg(
        samples=pl.col("sample_id").n_unique(),
        patients=pl.col("subject_id").n_unique(),
        parse_failures=(problem.is_not_null() & (problem != EMPTY)).sum(),
        empty_answers=(problem == EMPTY).sum(),
    )
    return {
        f"{name}/{row['task']}": int(row[name])
        for row in table.sort("task").iter_rows(named=True)
        for name in table.columns[1:]
    }


def _risk(
    rows: pl.DataFrame, resamples: Resamples, calibrator: Calibrator | None, main_only: bool
) -> Replicates:
    if rows["probability"].null_count():
        rows = rows.filter(pl.col("probability").is_not_null())
    labels = (rows["target"] == "yes").to_numpy()
    if labels.all() or not labels.any():
        return {}
    scores = rows["probability"].to_numpy()
    wanted = {"auroc": (weighted_auroc, scores)}
    if not main_only and not rows["balanced"].any():
        wanted["auprc"] = (weighted_auprc, scores)
        wanted |= {name: (metric, scores) for name, metric in CALIBRATION.items()}
        if calibrator is not None:
            fitted = recalibrated(rows, calibrator)
            wanted |= {f"{n}_calibrated": (m, fitted) for n, m in CALIBRATION.items()}
    blocks: dict[str, list[Floats]] = {name: [] for name in wanted}
    for weights in _weight_blocks(rows, resamples):
        for name, (metric, values) in wanted.items():
            blocks[name].append(metric(values, labels, weights))
    return {name: np.concatenate(parts) for name, parts in blocks.items()}


def _decision(rows: pl.DataFrame, resamples: Resamples, main_only: bool) -> Replicates:
    pairs = list(zip(rows["prediction"], rows["target"], strict=True))
    columns = np.array(_matched(rows, pairs)).T
    if main_only:
        return _means(rows, resamples, {"f1": columns[2]})
    said, true = ([text.split("\n") for text in texts] for texts in zip(*pairs, strict=True))
    reduced = [
        set_scores(map(reduce, one), map(reduce, other)).f1
        for one, other in zip(said, true, strict=True)
    ]
    means = dict(zip(("precision", "recall", "f1"), columns, strict=True))
    means["f1_normalised"] = np.array(reduced)
    if TOLERANT in rows.columns:
        means["f1_tolerant"] = rows[TOLERANT].to_numpy()
    found = _means(rows, resamples, means)
    return found | _micro(rows, resamples, said, true) | _draws(rows, resamples)


def _matched(rows: pl.DataFrame, pairs: Sequence[tuple[str, str]]) -> list[Sequence[float]]:
    """Return precision, recall and F1 of each answer: as they stand beside it, else computed."""
    found = [_compared(*pair) for pair in pairs]
    if MATCHED not in rows.columns:
        return list(found)
    beside = rows[MATCHED].to_list()
    return [own if other is None else other for own, other in zip(found, beside, strict=True)]


@lru_cache(maxsize=2**18)
def _compared(said: str, true: str) -> SetScores:
    """Score one answer; cached, as subgroups and differences ask for the same ones again."""
    return set_scores(said.split("\n"), true.split("\n"))


def _micro(
    rows: pl.DataFrame, resamples: Resamples, said: list[list[str]], true: list[list[str]]
) -> Replicates:
    """Return precision, recall and F1 of all items of a task together."""
    sets = [(normalise(one), normalise(other)) for one, other in zip(said, true, strict=True)]
    sizes = np.array([(len(a & b), len(a), len(b)) for a, b in sets], dtype=np.float64)
    sums = np.concatenate([w @ sizes for w in _weight_blocks(rows, resamples)])
    hits, given, wanted = sums.T
    ratios = {"micro_precision": (hits, given), "micro_recall": (hits, wanted)}
    ratios["micro_f1"] = (2 * hits, given + wanted)
    out = {}
    for name, (above, below) in ratios.items():
        # nothing named is no precision: 0, as for a single sample
        empty = np.where(wanted > 0, 0.0, np.nan)
        out[name] = np.divide(above, below, out=empty, where=below > 0)
    return out


def _draws(rows: pl.DataFrame, resamples: Resamples) -> Replicates:
    """Score several answers to one question: `pass@k` and the F1 of their consensus."""
    many = rows["draw"].max()
    if not many:
        return {}
    groups = rows.sort("sample_id", "draw").group_by("sample_id", maintain_order=True)
    table = groups.agg(pl.col("subject_id").first(), pl.col("target").first(), "prediction")
    f1, draws, right = [], [], []
    for answers, target in zip(table["prediction"], table["target"], strict=True):
        lines, truth = [answer.split("\n") for answer in answers], target.split("\n")
        f1.append(set_scores(agreed(lines), truth).f1)
        draws.append(len(lines))
        right.append(sum(normalise(one) == normalise(truth) for one in lines))
    columns = {"f1_self_consistency": np.array(f1)}
    n, c = np.array(draws), np.array(right)
    for k in (2**power for power in range(int(np.log2(n.min())) + 1)):
        columns[f"pass@{k}"] = pass_at_k(n, c, k)
    return _means(table, resamples, columns)


def _texts(rows: pl.DataFrame) -> dict[str, Floats]:
    """ROUGE of each text that was written against the one that stands in the record."""
    pairs = zip(rows["prediction"], rows["target"], strict=True)
    table = [rouge(said, true) for said, true in pairs]
    return {name: np.array([row[name] for row in table]) for name in table[0]}


def _means(rows: pl.DataFrame, resamples: Resamples, columns: dict[str, Floats]) -> Replicates:
    """Return means of per-row values under all weightings; answers to a question weigh alike."""
    stacked = np.stack(list(columns.values()), axis=1)
    blocks = []
    for weights in _weight_blocks(rows, resamples):
        total = weights.sum(axis=1)[:, None]
        out = np.full((len(weights), stacked.shape[1]), np.nan)
        blocks.append(np.divide(weights @ stacked, total, out=out, where=total > 0))
    return dict(zip(columns, np.concatenate(blocks).T, strict=True))


def _weight_blocks(rows: pl.DataFrame, resamples: Resamples) -> Iterator[Floats]:
    """Yield the weights of these samples, [replicates, samples], in blocks of replicates."""
    subjects = rows["subject_id"].to_numpy()
    size = max(1, MAX_ELEMENTS // len(rows))
    for start in range(0, len(resamples.counts), size):
        block = Resamples(resamples.patients, resamples.counts[start : start + size])
        yield block.weights(subjects)
