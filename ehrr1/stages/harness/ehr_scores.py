"""Questions on health records and their scores, for lm-evaluation-harness and Inspect.

Only the standard library is needed; `rows` of lm-evaluation-harness also needs `datasets`.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"

YES = ("yes", "Yes", "YES", " yes", " Yes")
NO = ("no", "No", "NO", " no", " No")
"""Spellings whose probabilities are summed."""

_BULLET = re.compile(r"^[-*•]\s+")


def read_rows(kind: str, task: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the questions of a kind ("risk" or "decision"), of one task if it is named.

    Raises ValueError if there are none.
    """
    found = False
    for path in sorted(DATA.glob(f"{kind}/{task or '*'}.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                found = True
                yield json.loads(line)
    if not found:
        raise ValueError(f"task={task}: {DATA / kind} has no questions of it")


def rows(kind: str, task: str, **_: Any) -> dict[str, Any]:
    """Return the questions of a task as the test split that lm-evaluation-harness reads."""
    from datasets import Dataset

    return {"test": Dataset.from_list(list(read_rows(kind, task)))}


def prompt(doc: dict[str, Any]) -> str:
    """Return the user's message: the record, then the question."""
    return str(doc["messages"][-1]["content"])


def choices(doc: dict[str, Any]) -> list[str]:
    """Return the continuations whose log-likelihoods are computed."""
    return [*YES, *NO]


def label(doc: dict[str, Any]) -> int:
    """Return the place of the right answer among `choices`."""
    return choices(doc).index(doc["target"][0])


def answer(doc: dict[str, Any]) -> str:
    """Return the right answer, one item a line."""
    return "\n".join(doc["target"])


def risk_results(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Return what AUROC and Brier score of a task are computed from.

    `results` has the log-likelihood of each of `choices`.
    """
    words = dict(zip(choices(doc), (float(result[0]) for result in results), strict=True))
    pair = (doc["target"][0] == "yes", probability_of_yes(words))
    return {"auroc": pair, "brier": pair}


def one_class_results(doc: dict[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Return what the Brier score is computed from: a task of one class has no AUROC."""
    return {"brier": risk_results(doc, results)["brier"]}


def decision_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Return precision, recall and F1 of a generated answer."""
    return set_scores(results[0], doc["target"])


def probability_of_yes(logprobs: dict[str, float]) -> float:
    """Return P(yes) / (P(yes) + P(no)), each summed over its spellings.

    logprobs: spelling -> natural logarithm of its probability. Returns NaN if no spelling of either
    word is among them.
    """
    yes, no = ([logprobs[word] for word in words if word in logprobs] for words in (YES, NO))
    most = max([*yes, *no], default=-math.inf)
    if most == -math.inf:
        return math.nan
    sum_yes, sum_no = (sum(math.exp(value - most) for value in values) for values in (yes, no))
    return sum_yes / (sum_yes + sum_no)


def auroc(pairs: Iterable[tuple[bool, float]]) -> float:
    """Return the area under the ROC curve of (label, probability) pairs; ties count half.

    Probabilities that are NaN are left out. Returns NaN if only one class is left.
    """
    known = sorted((p, bool(y)) for y, p in pairs if not math.isnan(p))
    positives = sum(y for _, y in known)
    negatives = len(known) - positives
    if not positives or not negatives:
        return math.nan
    ranks, begin = 0.0, 0
    while begin < len(known):
        end = begin
        while end < len(known) and known[end][0] == known[begin][0]:
            end += 1
        ranks += (begin + 1 + end) / 2 * sum(y for _, y in known[begin:end])
        begin = end
    return (ranks - positives * (positives + 1) / 2) / (positives * negatives)


def brier(pairs: Iterable[tuple[bool, float]]) -> float:
    """Return the mean squared error of (label, probability) pairs without NaN."""
    return mean([(p - y) ** 2 for y, p in pairs])


def mean(values: Iterable[float]) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def set_scores(text: str, target: Sequence[str]) -> dict[str, float]:
    """Return precision, recall and F1 of the distinct lower-cased lines of an answer.

    A closed think block is removed. An answer that is empty, or whose think block is not closed
    exactly once, scores 0.
    """
    items = {line.lower() for line in answer_lines(text)}
    truth = {item.strip().lower() for item in target} - {""}
    hits = len(items & truth)
    if not hits:
        return {"precision": 0.0, "recall": 0.0, "f1": 0.0}
    return {
        "precision": hits / len(items),
        "recall": hits / len(truth),
        "f1": 2 * hits / (len(items) + len(truth)),
    }


def answer_lines(text: str) -> list[str]:
    """Return the lines of an answer after its think block, without bullets and blank lines."""
    opened, closed = text.count("<think>"), text.count("</think>")
    if opened or closed:
        before, _, text = text.partition("</think>")
        wrong_start = opened and before.partition("<think>")[0].strip()
        if closed != 1 or opened > 1 or "<think>" in text or wrong_start:
            return []
    lines = (_BULLET.sub("", line.strip()).strip() for line in text.splitlines())
    return [line for line in lines if line]
