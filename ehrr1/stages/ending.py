"""The end of a stage on the terminal: its main numbers, the files it made, the next command."""

import shlex
from pathlib import Path

from rich.console import Console

from ehrr1 import runs
from ehrr1.command import typed_as, with_stage
from ehrr1.config.names import BENCHMARKS, TRAINING
from ehrr1.config.records import BenchmarkData
from ehrr1.config.schema import Config
from ehrr1.config.writers import ModelChains
from ehrr1.damage import METRICS

SCORES = "scores.txt"
"""The tables of an evaluation."""

MADE = {
    "prepare": ("store", "index.parquet"),
    "audit": ("audit.json", "audit.png"),
    "export": (
        *("dataset", "samples.jsonl", "samples.jsonl.zst", "meds", "release", "lm_eval"),
        "inspect",
    ),
    "card": ("card.md",),
    "graph": ("graphs.jsonl",),
    "chains": ("chains.jsonl",),
    "adapt": ("hf", "tb"),
    "reason": ("hf", "tb"),
    "rl": ("hf", "tb", "completions"),
    "eval": ("predictions.parquet", SCORES, "report.html", "cards"),
    "plan": ("plan.md",),
}
"""The files of a stage that a user opens, or gives to another tool."""

SUPERVISED = {
    "steps": "steps",
    "train/loss/first": "first loss",
    "train/loss/last": "last loss",
    "eval/loss": "loss on validation patients",
}

MAIN_NUMBERS = {
    "prepare": {"subjects": "patients", "samples/*": "samples"},
    "audit": {"samples": "samples", "leaking_samples": "leaking"},
    "export": {
        **{"rows": "rows", "contexts": "contexts", "patients": "patients"},
        "subjects": "patients",
    },
    "graph": {"pairs/*": "pairs that are evidence"},
    "chains": {"chains/*": "chains", "kept/*": "kept"},
    "adapt": SUPERVISED,
    "reason": SUPERVISED,
    "rl": {
        "steps": "steps",
        "validation/reward/before": "reward before",
        "validation/reward/after": "reward after",
    },
    "eval": {"risk/auroc/macro": "mean AUROC of risk", "decision/f1/macro": "mean F1 of decisions"},
}
"""Stage -> metric -> what it is called; `samples/*` is the sum over all tasks."""


def tell_result(stage: str, folder: Path, console: Console) -> None:
    """Print the main numbers of a finished run on stderr, and the files it made.

    Of an evaluation the tables of its scores are printed on stdout instead.
    """
    scores = folder / SCORES
    if stage == "eval" and scores.exists():
        print(scores.read_text(encoding="utf-8"), end="", flush=True)
    elif numbers := main_numbers(stage, folder):
        _line(console, f"  {numbers}")
    for name in MADE[stage]:
        if (folder / name).exists():
            _line(console, f"  {folder / name}")


def main_numbers(stage: str, folder: Path) -> str:
    """Return the main metrics of a finished run in one line; empty for a stage without any."""
    metrics, parts = runs.metrics_of(folder), []
    for name, words in MAIN_NUMBERS.get(stage, {}).items():
        prefix = name.removesuffix("*")
        found = [metrics[key] for key in metrics if key == name]
        if prefix != name:
            found = [metrics[k] for k in metrics if k.startswith(prefix) and k.count("/") == 1]
        if found:
            value = sum(found)
            parts.append(f"{words} {value:,}" if isinstance(value, int) else f"{words} {value:.4g}")
    return ", ".join(parts)


def tell_next(cfg: Config, stage: str, console: Console) -> None:
    """Print the command that follows a stage, as the user would type it."""
    if stage == "eval":
        _line(console, f"next: tensorboard --logdir {runs.home(cfg)}")
    elif following := next_stage(cfg, stage):
        _line(console, f"next: {with_stage(following)}")


def made_again(cfg: Config, stage: str, folder: Path) -> dict[str, str]:
    """Return the commands that make damaged files of a run again, as its manifest has them.

    Weights follow from a checkpoint, and chains that were paid for from their ledger.
    """
    if stage == "chains" and isinstance(cfg.chains, ModelChains):
        return {"": f"rm {shlex.quote(str(folder / 'metrics.json'))} && {with_stage(stage)}"}
    commands = {"": f"{with_stage(stage)} overwrite=true"}
    if stage in TRAINING:
        commands["hf"] = f"{typed_as()} stage=consolidate {shlex.quote(f'run={folder}')}"
    if stage == "eval":
        commands[METRICS] = f"{typed_as()} stage=eval {shlex.quote(f'rescore={folder}')}"
    return commands


def next_stage(cfg: Config, stage: str) -> str | None:
    """Return the stage of the curriculum that follows, or None.

    Records that were looked at (`audit`, `card`, `export`) go on as they do after `prepare`; a
    benchmark without training rows is evaluated, and what was planned is trained.
    """
    if stage == "plan":
        return cfg.plan.stage
    order = runs.order(cfg)
    place = order.index(stage) if stage in order else 0
    only_asked = cfg.data.name in BENCHMARKS and not (
        isinstance(cfg.data, BenchmarkData) and cfg.data.train
    )
    if place == 0 and only_asked:
        return "eval"
    return order[place + 1] if place + 1 < len(order) else None


def _line(console: Console, text: str) -> None:
    """Print one line as it is: a path or a command is copied whole."""
    console.print(text, highlight=False, soft_wrap=True)
