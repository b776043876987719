"""Logs of lm-evaluation-harness and Inspect as predictions.

samples_<task>_<time>.jsonl   lm-evaluation-harness with `--log_samples`, below a folder that is
                              named after the model
<time>_<task>_<id>.eval       Inspect: a ZIP archive of JSON files
<time>_<task>_<id>.json       Inspect with `--log-format json`

The questions are those of `stage=export` (`stages/export_harness.py`). Answers are read by our
rules: only the raw outputs of a log are used, not its scores.
"""

import json
import math
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ehrr1.config.names import WordingName
from ehrr1.errors import UserError
from ehrr1.evaluation.predict import NOT_TOLD
from ehrr1.evaluation.predictions import (
    WrittenAnswer,
    YesProbability,
    frame,
    prediction_row,
    risk_row,
)
from ehrr1.evaluation.prompt_mode import PromptMode
from ehrr1.runs import short
from ehrr1.scoring.answers import read_answer
from ehrr1.scoring.risk import NO_SPELLINGS, YES_SPELLINGS
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.samples import Prepared, Sample

FAILED = "the log has no answer"


@dataclass(frozen=True, slots=True)
class LoggedAnswer:
    """One answer of a log.

    `logprobs`: spelling -> natural logarithm of its probability, of a risk question. `text`: the
    generated text, of a decision question; None if the sample failed.
    """

    model: str
    sample_id: str
    wording: WordingName
    draw: int
    text: str | None = None
    logprobs: Mapping[str, float] | None = None


def read_logs(place: Path, prepared: Prepared) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the predictions of the logs in a file or folder, and the index of their samples.

    The table has the rows of each model, whose name is the last part of its name in the log. Raises
    UserError if there is no log, if it cannot be read, if a sample is not one of `prepared`, or if
    a model answers a sample twice.
    """
    answers = [answer for path in log_files(place) for answer in _answers_of(path, place)]
    if not answers:
        raise UserError(f"predictions={place}: its logs have no answers")
    named = {answer.sample_id for answer in answers}
    index = prepared.scan().filter(pl.col("sample_id").is_in(list(named))).collect()
    samples = {sample.sample_id: sample for sample in prepared.as_samples(index)}
    if unknown := sorted(named - set(samples)):
        raise UserError(
            f"predictions={place}: {len(unknown):,} of {len(named):,} samples are not among the "
            f"prepared ones ({unknown[0]}, ...); name the stage=prepare that the questions were "
            "exported from by inputs.prepare=DIR"
        )
    by_model: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for answer in answers:
        by_model[answer.model].append(_row(samples[answer.sample_id], answer))
    table = pl.concat([frame(model, rows) for model, rows in sorted(by_model.items())])
    keys = ["model", "sample_id", "draw"]
    if table.select(keys).is_duplicated().any():
        twice = table.filter(table.select(keys).is_duplicated())[0]
        raise UserError(
            f"predictions={place}: {twice['model'].item()} answers {twice['sample_id'].item()} "
            "more than once; name the logs of one run of each model"
        )
    return table, index


def log_files(place: Path) -> list[Path]:
    """Return the log at `place`, or those in it. Raises UserError if there is none."""
    found = [place] if place.is_file() else []
    if place.is_dir():
        found = [
            *place.rglob("samples_*.jsonl"),
            *place.rglob("*.eval"),
            *(path for path in place.rglob("*.json") if _is_inspect(path)),
        ]
    if not found:
        raise UserError(
            f"predictions={place}: it has no log; give the output folder of lm_eval --log_samples, "
            "or the log folder of Inspect (.eval or .json)"
        )
    return sorted(found)


def _is_inspect(path: Path) -> bool:
    """Return whether a JSON file is a log of Inspect, not a table of results."""
    with path.open(encoding="utf-8") as file:
        start = file.read(4096)
    return '"eval"' in start and '"version"' in start


def _answers_of(path: Path, place: Path) -> Iterator[LoggedAnswer]:
    """Yield the answers of one log. Raises UserError if it cannot be read."""
    try:
        if path.suffix == ".jsonl":
            yield from _lm_eval(path)
        elif path.suffix == ".eval":
            yield from _inspect_archive(path)
        else:
            log = json.loads(path.read_text(encoding="utf-8"))
            for sample in log.get("samples") or []:
                yield _inspect(log["eval"]["model"], sample)
    except (
        *(ValueError, KeyError, TypeError, IndexError),
        *(zipfile.BadZipFile, NotImplementedError),
    ) as error:
        raise UserError(
            f"predictions={place}: {path} cannot be read ({type(error).__name__}: {error}); it "
            "must be a log of questions of stage=export (docs/evaluation.md)"
        ) from error


def _lm_eval(path: Path) -> Iterator[LoggedAnswer]:
    """Yield the answers of a samples file; repeated answers are draws.

    Each line has the question (`doc`), the requests (`arguments`) and their raw outputs (`resps`).
    A question is logged once for each filter of the task; the first counts.
    """
    model = short(path.parent.name.replace("__", "/"))
    seen: set[int] = set()
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            told = json.loads(line)
            doc = told["doc"]
            if told["doc_id"] in seen:
                continue
            seen.add(told["doc_id"])
            about = (model, doc["sample_id"], doc["wording"])
            if ALL_TASKS[doc["task"]].kind == "risk":
                requests = told["arguments"].values()
                words = [request["arg_1"] for request in requests]
                values = [float(outputs[0][0]) for outputs in told["resps"]]
                yield LoggedAnswer(*about, 0, logprobs=dict(zip(words, values, strict=True)))
            else:
                for draw, text in enumerate(told["resps"][0]):
                    yield LoggedAnswer(*about, draw, text=text)


def _inspect_archive(path: Path) -> Iterator[LoggedAnswer]:
    """Yield the answers of an archive: `header.json`, and a file in `samples/` for each sample."""
    with zipfile.ZipFile(path) as archive:
        model = json.loads(archive.read("header.json"))["eval"]["model"]
        for name in archive.namelist():
            if name.startswith("samples/"):
                yield _inspect(model, json.loads(archive.read(name)))


def _inspect(model: str, sample: Mapping[str, Any]) -> LoggedAnswer:
    """Return the answer of a sample of Inspect; epochs are draws."""
    told, chosen = sample["metadata"], sample["output"]["choices"]
    about = (short(model), sample["id"], told["wording"], sample["epoch"] - 1)
    if not chosen or sample.get("error"):
        return LoggedAnswer(*about)
    if ALL_TASKS[told["task"]].kind == "risk":
        tokens = (chosen[0].get("logprobs") or {}).get("content") or [{}]
        most_likely = tokens[0].get("top_logprobs") or []
        return LoggedAnswer(*about, logprobs={one["token"]: one["logprob"] for one in most_likely})
    return LoggedAnswer(*about, text=_text(chosen[0]["message"]["content"]))


def _text(content: str | Sequence[Mapping[str, Any]]) -> str:
    """Return the text of a message; reasoning that the provider has separated is left out."""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


def _row(sample: Sample, answer: LoggedAnswer) -> dict[str, Any]:
    """Return the prediction of a sample, with the problem of an answer that cannot be read."""
    mode = PromptMode("direct", wording=answer.wording)
    if ALL_TASKS[sample.task].kind == "risk":
        told = _yes_probability(answer.logprobs or {})
        if told is None:
            return prediction_row(sample, mode, WrittenAnswer([], None, NOT_TOLD), draw=answer.draw)
        return risk_row(sample, told, mode)
    if answer.text is None:
        return prediction_row(sample, mode, WrittenAnswer([], None, FAILED), draw=answer.draw)
    read = read_answer(answer.text, "decision")
    written = WrittenAnswer(read.items, answer.text, read.problem)
    return prediction_row(sample, mode, written, draw=answer.draw)


def _yes_probability(logprobs: Mapping[str, float]) -> YesProbability | None:
    """Return P(yes) / (P(yes) + P(no)), each summed over its spellings in `logprobs`.

    Returns None if neither word is among them.
    """
    yes, no = (
        _log_sum([logprobs[word] for word in words if word in logprobs])
        for words in (YES_SPELLINGS, NO_SPELLINGS)
    )
    if max(yes, no) == -math.inf:
        return None
    return YesProbability(1 / (1 + math.exp(min(max(no - yes, -700.0), 700.0))), yes, no)


def _log_sum(values: Sequence[float]) -> float:
    """Return the logarithm of the sum of probabilities that are given as logarithms."""
    most = max(values, default=-math.inf)
    if most == -math.inf:
        return -math.inf
    return most + math.log(sum(math.exp(value - most) for value in values))
