"""Compose the text of `--help`: stages, groups with their choices, and all settings."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import yaml
from omegaconf import OmegaConf

from ehrr1.config.complaints import TAGGED
from ehrr1.config.fields import describe, fields
from ehrr1.config.schema import Config

USAGE = """\
EHR-R1 as an experiment framework: raw MIMIC-IV to questions, training, scores.

  {command}                                                the curriculum on a synthetic hospital
  {command} experiment=mimic_demo data.root=DIR            the same on a MIMIC-IV folder
  {command} stage=adapt data=mimic data.root=DIR model=8b  real data or model: released settings
  {command} stage=STAGE [GROUP=CHOICE] [section.setting=VALUE]

Stages, in the order of the curriculum:
  prepare      tables -> store of rows -> index of samples
  graph        evidence for answers (graph.show=SAMPLE_ID: a picture)
  chains       reasoning chains, written from the evidence
  adapt        supervised, direct answers
  reason       supervised, with chains
  rl           GRPO from `reason`
  eval         scores with intervals (rescore=DIR, compare=[DIR,DIR])
  curriculum   all of them
Other stages:
  export       samples as Parquet or JSONL, MEDS, the release's files, lm_eval, Inspect
  audit        temporal leakage of contexts, labels, splits
  card         description of the prepared data: card.md
  plan         memory and time of a training stage on a cluster
  infer        one record, one question
  consolidate  hf/ of a stopped run (run=DIR)

Groups and their choices (GROUP=CHOICE):
"""

END = """
--cfg job prints the configuration and runs nothing; -m sweeps over comma-separated values;
--version prints the version. The same command resumes a stage that was stopped.
"""

COMMENT_COLUMN = 44

EXPLAINED_IN = {"reason": "adapt", "rl": "adapt"}
"""Sections whose settings without a comment are explained in the file of another section."""

LINE = re.compile(r"""^(?P<indent> *)"?(?P<key>[\w.]+)"?:(?P<value>.*?)(?: # (?P<comment>.*))?$""")


def help_text(conf: Path, overrides: list[str], command: str) -> str:
    """Return the help text, with settings as composed with these overrides.

    Raises Hydra's errors.
    """
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        whole = hydra.compose("config", overrides=overrides, return_hydra_config=True)
    choices = whole.hydra.runtime.choices
    whole.name = whole.name if "name=" in " ".join(overrides) else choices.experiment
    plain: Any = OmegaConf.to_container(OmegaConf.masked_copy(whole, list(Config.model_fields)))
    groups = [
        f"  {folder.name}: {', '.join(sorted(file.stem for file in folder.glob('*.yaml')))}"
        for folder in sorted(conf.iterdir())
        if folder.is_dir() and folder.name != "hydra"
    ]
    settings = [
        line
        for name, value in plain.items()
        for line in _lines(name, value, comments_of(conf, name, choices.get(name)), 0)
    ]
    head = USAGE.format(command=command) + "\n".join(groups)
    return "\n".join(
        [head, "", "Settings, as composed now (section.setting=VALUE):", *settings, END]
    )


def _lines(key: str, value: Any, comments: dict[str, str], depth: int) -> Iterator[str]:
    name = key.rpartition(".")[2]
    if isinstance(value, dict) and value and key != "model.config":
        comment = comments.get(key)
        yield f"{'  ' * depth}{name}:" + (f" # {comment}" if comment else "")
        for inner, one in value.items():
            yield from _lines(f"{key}.{inner}", one, comments, depth + 1)
        return
    shown = yaml.safe_dump(value, default_flow_style=True, width=float("inf")).strip()
    text = f"{'  ' * depth}{name}: {shown.removesuffix('...').strip()}"
    comment = comments.get(key) or values_of(key)
    yield f"{text:<{COMMENT_COLUMN}} # {comment}" if comment else text


def values_of(key: str) -> str:
    """Describe the valid values of a setting, by its full name."""
    section, _, last = key.rpartition(".")
    if section in TAGGED and last in ("name", "writer", "source"):
        return f"set by {section}=CHOICE"
    return " or ".join(dict.fromkeys(describe(field) for field in fields(Config, key)))


def comments_of(conf: Path, section: str, choice: str | None) -> dict[str, str]:
    """Return setting -> its comment in the chosen file, else in another file.

    The other file is one that the chosen file inherits from, another of the group, or that of
    `EXPLAINED_IN`.
    """
    if choice is not None:
        files = _with_parents(conf / section / f"{choice}.yaml")
        files += sorted((conf / section).glob("*.yaml"))
        comments = [_of_file(file, f"{section}.") for file in files]
    elif (conf / f"{section}.yaml").exists():
        files = [conf / f"{one}.yaml" for one in (section, EXPLAINED_IN.get(section)) if one]
        comments = [_of_file(file, f"{section}.") for file in files]
    else:
        comments = [_of_file(conf / "config.yaml", "")]
    return {key: text for one in reversed(comments) for key, text in one.items()}


def _with_parents(file: Path) -> list[Path]:
    """Return the file of a choice and those that its `defaults` name, the nearest first."""
    if not file.exists():
        return []
    defaults = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("defaults", [])
    names = [name for name in defaults if isinstance(name, str) and name != "_self_"]
    return [file, *(one for name in names for one in _with_parents(file.with_name(f"{name}.yaml")))]


def _of_file(file: Path, prefix: str) -> dict[str, str]:
    comments: dict[str, str] = {}
    parents: list[tuple[int, str]] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not (match := LINE.match(line)):
            continue
        indent = len(match["indent"])
        parents = [(depth, name) for depth, name in parents if depth < indent]
        key = prefix + ".".join([*(name for _, name in parents), match["key"]])
        if match["comment"]:
            comments[key] = match["comment"]
        parents.append((indent, match["key"]))
    return comments
