"""stage=export export.layout=lm_eval, inspect: questions for other evaluation frameworks.

lm_eval/                              of lm-evaluation-harness
    ehr_risk.yaml, ehr_decision.yaml  groups of tasks
    _risk.yaml, _decision.yaml        what the tasks of a kind share
    ehr_<task>.yaml                   a task
inspect/tasks.py                      of Inspect: the tasks `ehr_risk` and `ehr_decision`

Both have README.md, `data/<kind>/<task>.jsonl`, a question a line, and `ehr_scores.py`, their
scores (the files of `ehrr1/stages/harness`, which need nothing of this package).
`evaluation.harness_logs` reads the frameworks' logs.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from ehrr1.config.records import Export
from ehrr1.files import replacing, write_jsonl, write_text
from ehrr1.progress import track
from ehrr1.prompts.messages import broken
from ehrr1.prompts.wording import Wording
from ehrr1.stages.export_rows import no_samples
from ehrr1.tasks.catalog import ALL_TASKS
from ehrr1.tasks.samples import Prepared, Sample
from ehrr1.tasks.selection import select

CODE = Path(__file__).parent / "harness"

MAX_ANSWER_TOKENS = 128
"""Limit of a decision's answer, that of `eval.max_new_tokens.direct`."""

RESULTS = {"risk": ("auroc", "brier"), "decision": ("precision", "recall", "f1")}
LESS_IS_BETTER = "brier"


class Function(str):
    """The name of a function of `ehr_scores.py` in a YAML file."""


class _Dumper(yaml.SafeDumper):
    """Writes `Function` as lm-evaluation-harness reads it: `!function module.name`."""


_Dumper.add_representer(
    Function, lambda dumper, name: dumper.represent_scalar("!function", f"ehr_scores.{name}")
)


def write(
    prepared: Prepared,
    folder: Path,
    style: Wording,
    asked: Export,
    tasks: Sequence[str] | None,
    seed: int,
) -> dict[str, float | int]:
    """Write the questions of a split, at most `limit` a task, and the framework's task files.

    The samples are those that `stage=eval` selects with the same limit and seed, of `tasks` if
    given. Tasks whose answer is a text are left out. Metrics: `rows`, `samples/<task>`,
    `left_out/<task>`. Raises UserError if the split has no samples.
    """
    split = asked.split
    index = select(prepared.scan(None if split == "all" else split, tasks), asked.limit, seed)
    names = sorted(index["task"].unique())
    texts = [task for task in names if ALL_TASKS[task].target == "text"]
    names = [task for task in names if task not in texts]
    if not names:
        raise no_samples(split, tasks, prepared.folder)
    counts = {row["task"]: row["count"] for row in index["task"].value_counts().to_dicts()}
    metrics: dict[str, float | int] = {f"left_out/{task}": counts[task] for task in texts}
    with replacing(folder) as temporary:
        temporary.mkdir(parents=True, exist_ok=True)
        for task in names:
            samples = prepared.as_samples(index.filter(index["task"] == task))
            path = temporary / "data" / ALL_TASKS[task].kind / f"{task}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            metrics[f"samples/{task}"] = write_jsonl(path, rows(prepared, samples, style))
        shutil.copy(CODE / "ehr_scores.py", temporary)
        shutil.copy(CODE / f"{asked.layout}.md", temporary / "README.md")
        if asked.layout == "inspect":
            shutil.copy(CODE / "tasks.py", temporary)
        else:
            _write_yaml(temporary, index.filter(index["task"].is_in(names)), style)
    return {"rows": sum(counts[task] for task in names)} | metrics


def rows(prepared: Prepared, samples: Sequence[Sample], style: Wording) -> Iterator[dict[str, Any]]:
    """Yield a question a row, for a direct answer.

    Texts that a tokenizer would read as a model's markers are broken up (`prompts.markers`).
    """
    for sample in track(samples, samples[0].task, total=len(samples)):
        record = style.record(prepared.context(sample))
        chat = style.chat(sample.task, record, think=False, own=style.own(sample))
        yield {
            "sample_id": sample.sample_id,
            "subject_id": sample.subject_id,
            "task": sample.task,
            "kind": ALL_TASKS[sample.task].kind,
            "split": sample.split,
            "prediction_time": sample.prediction_time.isoformat(),
            "wording": style.name,
            "messages": [{**turn, "content": broken(turn["content"])} for turn in chat],
            "target": [broken(item) for item in sample.target],
        }


def _write_yaml(folder: Path, index: pl.DataFrame, style: Wording) -> None:
    """Write the task files of lm-evaluation-harness, for the samples of `index`."""
    answers = dict(index.group_by("task").agg(pl.col("target").n_unique()).iter_rows())
    for kind in RESULTS:
        tasks = sorted(task for task in answers if ALL_TASKS[task].kind == kind)
        if not tasks:
            continue
        _dump(folder / f"_{kind}.yaml", _shared(kind, style))
        for task in tasks:
            content: dict[str, Any] = {
                "include": f"_{kind}.yaml",
                "task": f"ehr_{task}",
                "dataset_kwargs": {"kind": kind, "task": task},
            }
            if kind == "risk" and answers[task] == 1:  # NaN would make the group's mean NaN
                content |= {
                    "process_results": Function("one_class_results"),
                    "metric_list": [
                        metric for metric in _metrics(kind) if metric["metric"] != "auroc"
                    ],
                }
            _dump(folder / f"ehr_{task}.yaml", content)
        group = {
            "group": f"ehr_{kind}",
            "task": [f"ehr_{task}" for task in tasks],
            "aggregate_metric_list": [
                {"metric": name, "aggregation": "mean", "weight_by_size": False}
                for name in RESULTS[kind]
            ],
        }
        _dump(folder / f"ehr_{kind}.yaml", group)


def _shared(kind: str, style: Wording) -> dict[str, Any]:
    """Return what the tasks of a kind share.

    The system message is `description`, which the harness gives to the chat template as such.
    """
    common = {
        "custom_dataset": Function("rows"),
        "test_split": "test",
        "description": style.system,
        "doc_to_text": Function("prompt"),
        "num_fewshot": 0,
        "metadata": {"version": 1.0},
    }
    if kind == "risk":
        own: dict[str, Any] = {
            "output_type": "multiple_choice",
            "doc_to_choice": Function("choices"),
            "doc_to_target": Function("label"),
            "target_delimiter": "",
        }
    else:
        own = {
            "output_type": "generate_until",
            "doc_to_target": Function("answer"),
            "generation_kwargs": {
                "until": [],
                "do_sample": False,
                "max_gen_toks": MAX_ANSWER_TOKENS,
            },
        }
    results = {"process_results": Function(f"{kind}_results"), "metric_list": _metrics(kind)}
    return common | own | results


def _metrics(kind: str) -> list[dict[str, Any]]:
    """Return the scores of a kind, as a task's `metric_list`."""
    return [
        {
            "metric": name,
            "aggregation": Function(name) if kind == "risk" else "mean",
            "higher_is_better": name != LESS_IS_BETTER,
        }
        for name in RESULTS[kind]
    ]


def _dump(path: Path, content: dict[str, Any]) -> None:
    write_text(path, yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True))
