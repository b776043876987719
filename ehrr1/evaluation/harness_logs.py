"""Read logs of lm-evaluation-harness and Inspect as predictions.

samples_<task>_<time>.jsonl   lm-evaluation-harness with `--log_samples`, in a folder that is named
                              after the model
<time>_<task>_<id>.json       Inspect with `--log-format json`

The questions are those of `stage=export` (`stages/export_harness.py`). Only the outputs of the
models are read, not the frameworks' scores.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrr1.config.names import WordingName
from ehrr1.config.schema import Config
from ehrr1.errors import UserError
from ehrr1.evaluation.predict import NOT_TOLD, tell
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
from ehrr1.scoring.risk import NO_SPELLINGS, YES_SPELLINGS, AnswerTokens
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.terminal import plain_console

console = plain_console(stderr=True)

FAILED = "the log has no answer"

LOCAL_BLANKS = str.maketrans("\u0120\u2581", "  ")
"""Tokenizers' characters for a blank, which Inspect logs where it runs the model itself."""


@dataclass(frozen=True, slots=True)
class LoggedAnswer:
    """One answer of a log: the text of a decision question, or the probability of a risk question.

    `problem` says why there is neither.
    """

    model: str
    sample_id: str
    wording: WordingName
    draw: int = 0
    text: str | None = None
    probability: YesProbability | None = None
    problem: str | None = None


def logged_predictions(cfg: Config, prepared: Prepared, tasks: Sequence[str]) -> pl.DataFrame:
    """Return the predictions in the logs of `predictions`, and print how many are scored.

    Every answer of the logs is a row. A result has the last part of the model's name in its log.
    Raises UserError if there is no log, if one cannot be read, if a sample is not among those of
    `prepared`, if a model answers a sample twice, or if no answer belongs to `eval.split` and
    `tasks`.
    """
    place = Path(str(cfg.predictions))
    answers = [answer for path in log_files(place) for answer in read_log(path)]
    table = table_of(place, answers, prepared)
    scored = (table["split"] == cfg.eval.split) & table["task"].is_in(list(tasks))
    if not scored.any():
        raise UserError(
            f"predictions={place}: none of its {table.height:,} answers belongs to "
            f"eval.split={cfg.eval.split} and eval.suite={cfg.eval.suite}"
        )
    console.print(
        f"{place}: {table.height:,} answers, {scored.sum():,} of them to samples of "
        f"eval.split={cfg.eval.split} and eval.suite={cfg.eval.suite}; "
        f"{table['problem'].is_not_null().sum():,} cannot be read (column problem)",
        soft_wrap=True,
    )
    return table


def table_of(place: Path, answers: Sequence[LoggedAnswer], prepared: Prepared) -> pl.DataFrame:
    """Return the answers of the logs at `place` as a table of predictions.

    Raises UserError if a sample is not among those of `prepared`, or answered twice by a model.
    """
    named = {answer.sample_id for answer in answers}
    index = prepared.scan().filter(pl.col("sample_id").is_in(list(named))).collect()
    samples = {sample.sample_id: sample for sample in prepared.as_samples(index)}
    if unknown := named - set(samples):
        raise UserError(
            f"predictions={place}: {len(unknown):,} of {len(named):,} samples are not among those "
            f"of {prepared.folder}; name the run of stage=prepare that the questions were exported "
            "from: inputs.prepare=DIR"
        )
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for answer in answers:
        rows[answer.model].append(_row(samples[answer.sample_id], answer))
    table = pl.concat([frame(model, rows[model]) for model in sorted(rows)])
    twice = table.filter(pl.struct("model", "sample_id", "draw").is_duplicated())
    if not twice.is_empty():
        raise UserError(
            f"predictions={place}: {twice['model'][0]} answers some questions more than once; name "
            "the logs of one run of each model"
        )
    return table


def log_files(place: Path) -> list[Path]:
    """Return the log at `place`, or those in it.

    Raises UserError if there is none, or if there is one that must be converted first: Inspect's
    .eval files are compressed with zstd, which Python reads from 3.14 on.
    """
    files = [place] if place.is_file() else sorted(place.rglob("*"))
    if unread := [path for path in files if path.suffix == ".eval"]:
        raise UserError(
            f"predictions={place}: {unread[0].name} is not read; convert it: inspect log convert "
            f"{place} --to json --output-dir DIR, and give that folder"
        )
    if place.is_file():
        return files
    lm_eval = [path for path in files if path.match("samples_*.jsonl")]
    found = lm_eval + [path for path in files if path.suffix == ".json" and _is_inspect(path)]
    if not found:
        raise UserError(
            f"predictions={place}: it has no log; give the output folder of lm_eval --log_samples, "
            "or the log folder of inspect eval --log-format json"
        )
    return found


def _is_inspect(path: Path) -> bool:
    """Return whether a JSON file is a log of Inspect, not a table of results."""
    with path.open(encoding="utf-8") as file:
        start = file.read(4096)
    return '"eval"' in start and '"version"' in start


def read_log(path: Path) -> Iterator[LoggedAnswer]:
    """Yield the answers of one log. Raises UserError if it is not a log of exported questions."""
    try:
        if path.suffix == ".jsonl":
            yield from _lm_eval(path)
        else:
            log = json.loads(path.read_text(encoding="utf-8"))
            for sample in log["samples"]:
                yield _inspect(_model_name(log["eval"]["model"]), sample)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        # other messages quote what cannot be read, such as an answer
        told = f": {error}" if isinstance(error, KeyError) else ""
        raise UserError(
            f"predictions={path}: it cannot be read ({type(error).__name__}{told}); it must be "
            "a log of questions of stage=export (docs/evaluation.md)"
        ) from error


def _model_name(logged: str) -> str:
    """Return the last part of a model's name or path, for `outputs/demo/rl/hf` demo-rl."""
    name = short(logged)
    return "-".join(Path(logged).parts[-3:-1]) if name == "hf" else name


def _lm_eval(path: Path) -> Iterator[LoggedAnswer]:
    """Yield the answers of a samples file; repeated answers are draws.

    Each line has the question (`doc`), the requests (`arguments`) and their outputs (`resps`). The
    log-probabilities of yes and no stay unknown: lm-evaluation-harness adds that of the line breaks
    between prompt and answer, the same for all spellings, to each.
    """
    model = _model_name(path.parent.name.replace("__", "/"))
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            logged = json.loads(line)
            question, outputs = logged["doc"], logged["resps"]
            about = (model, question["sample_id"], question["wording"])
            if ALL_TASKS[question["task"]].kind == "risk":
                words = [request["arg_1"] for request in logged["arguments"].values()]
                values = [float(output[0][0]) for output in outputs]
                found = _yes_probability(dict(zip(words, values, strict=True)))
                if found is None:
                    yield LoggedAnswer(*about, problem=NOT_TOLD)
                else:
                    yield LoggedAnswer(*about, probability=YesProbability(found.probability))
            else:
                for draw, text in enumerate(outputs[0]):
                    yield LoggedAnswer(*about, draw, text)


def _inspect(model: str, sample: Mapping[str, Any]) -> LoggedAnswer:
    """Return the answer of a sample of Inspect; epochs are draws."""
    question, choices = sample["metadata"], sample["output"]["choices"]
    about = (model, sample["id"], question["wording"], sample["epoch"] - 1)
    if not choices or sample.get("error"):
        return LoggedAnswer(*about, problem=FAILED)
    if ALL_TASKS[question["task"]].kind == "decision":
        return LoggedAnswer(*about, _text(choices[0]["message"]["content"]))
    tokens = (choices[0].get("logprobs") or {}).get("content") or [{}]
    likeliest = tokens[0].get("top_logprobs") or []
    found = _yes_probability(
        {token["token"].translate(LOCAL_BLANKS): token["logprob"] for token in likeliest}
    )
    return LoggedAnswer(*about, probability=found, problem=None if found else NOT_TOLD)


def _text(content: str | Sequence[Mapping[str, Any]]) -> str:
    """Return the text of a message, without reasoning that the provider has separated."""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part["type"] == "text")


def _yes_probability(logprobs: Mapping[str, float]) -> YesProbability | None:
    """Return the probability of yes from the log-probabilities of spellings.

    Returns None if no spelling of either word is among them.
    """
    spellings = [*YES_SPELLINGS, *NO_SPELLINGS]
    values = np.array([logprobs.get(word, -np.inf) for word in spellings])
    places, cut = list(range(len(spellings))), len(YES_SPELLINGS)
    return tell(values, AnswerTokens(places[:cut], places[cut:]))


def _row(sample: Sample, answer: LoggedAnswer) -> dict[str, Any]:
    """Return the prediction of a sample, with the problem of an answer that cannot be read."""
    mode = PromptMode("direct", wording=answer.wording)
    if answer.probability is not None:
        return risk_row(sample, answer.probability, mode)
    if answer.text is None:
        return prediction_row(
            sample, mode, WrittenAnswer([], None, answer.problem), draw=answer.draw
        )
    read = read_answer(answer.text, "decision")
    written = WrittenAnswer(read.items, answer.text, read.problem)
    return prediction_row(sample, mode, written, draw=answer.draw)
