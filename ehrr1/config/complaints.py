"""Describe the errors of a configuration, one line per setting.

A line names the setting, its value, and the valid values or the setting that was probably meant.
"""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ehrr1.config.fields import describe, describe_values, fields, keys, owners

GLOBAL = "# @package _global_"
"""First line of a file with settings of several sections.

Without it, Hydra puts the file's settings into a section named after the group.
"""

RENAMED = {
    "split": "export.split (of an evaluation: eval.split)",
    "limit": "export.limit (of an evaluation: eval.samples_per_task)",
    "layout": "export.layout",
    "similar_items": "export.similar_items",
    "rollout.timeout": "rollout.timeout_seconds",
    "trainer.keep_best": "trainer.save_top_k",
}
"""Settings of earlier versions and their current names."""

ELSEWHERE = {
    **dict.fromkeys(("learning_rate", "learningrate"), "lr"),
    **dict.fromkeys(("batch_size", "per_device_train_batch_size"), "trees_per_step"),
    **dict.fromkeys(("gradient_accumulation_steps", "accumulate_grad_batches"), "trees_per_step"),
    **dict.fromkeys(("num_train_epochs", "max_epochs", "num_epochs"), "epochs"),
    **dict.fromkeys(("max_seq_len", "max_seq_length", "max_length"), "max_tokens"),
    **dict.fromkeys(("num_generations", "n_generations"), "group_size"),
    **dict.fromkeys(("gradient_clip_val", "max_grad_norm", "grad_clip"), "clip"),
    **dict.fromkeys(("num_nodes", "nnodes"), "nodes"),
    **dict.fromkeys(("gpus", "num_gpus", "nproc_per_node", "num_processes"), "devices"),
    **dict.fromkeys(("kl_coef", "kl_coeff"), "beta"),
    **dict.fromkeys(("warmup_ratio", "warmup_steps"), "warmup"),
    **dict.fromkeys(("output_dir", "out_dir", "default_root_dir"), "output_root"),
    "max_steps": "max_steps steps",
    "num_steps": "max_steps steps",
}
"""Names of settings in other frameworks -> the last part of their names here."""

NOT_NEEDED = {
    **dict.fromkeys(
        ("resume", "ckpt_path", "checkpoint", "resume_from_checkpoint", "resume_from"),
        "the same command again resumes a run that was stopped",
    ),
    **dict.fromkeys(
        ("wandb", "report_to", "tensorboard", "loggers"),
        "logger=tensorboard, csv, wandb or mlflow chooses one, logger=[tensorboard,wandb] several",
    ),
    **dict.fromkeys(("debug", "fast_dev_run"), "experiment=smoke runs every stage in seconds"),
}
"""Settings of other frameworks without a counterpart, and their replacement."""

CHOICES = {
    "stage": {
        **dict.fromkeys(("sft", "finetune", "fine_tune", "train", "training"), "adapt, reason"),
        **dict.fromkeys(("grpo", "ppo", "rlhf", "dapo"), "rl"),
        **dict.fromkeys(("test", "evaluate", "evaluation", "score"), "eval"),
        **dict.fromkeys(("predict", "generate", "inference", "ask"), "infer"),
        **dict.fromkeys(("preprocess", "data", "build"), "prepare"),
        **dict.fromkeys(("sft_reasoning", "cot"), "reason"),
        "all": "curriculum",
    },
    "data": dict.fromkeys(("mimiciv", "mimic-iv", "mimic4", "mimic_iv", "demo"), "mimic"),
    "trainer": dict.fromkeys(("deepspeed", "fsdp"), "zero2, zero3"),
    "engine": dict.fromkeys(("openai", "vllm_server"), "server"),
}
"""Choices of a group in other frameworks -> their names here."""

TAGGED = ("data", "chains", "engine", "launcher", "rollout", "concepts")
"""Sections whose settings depend on a choice; pydantic adds the choice to a setting's path."""


def problems(error: ValidationError, plain: dict[str, Any], config: type[BaseModel]) -> list[str]:
    """Return one line for each wrong setting of the plain configuration."""
    lines = {}
    for one in error.errors(include_url=False):
        path = list(one["loc"])
        if len(path) > 1 and path[0] in TAGGED:
            del path[1]
        key, kind = _key(path, plain), one["type"]
        if kind == "invalid_key":
            lines[f"{key}.{path[-1]}"] = f"{key}.{path[-1]}: {unknown(f'{key}.{path[-1]}', config)}"
        elif kind == "extra_forbidden":
            lines[key] = f"{key}: {unknown(key, config)}"
        elif kind == "missing":
            lines[key] = f"{key}: it is missing; {_needed(key, config)}"
        elif kind == "union_tag_invalid":
            field = one["ctx"]["discriminator"].strip("'")
            words = one["ctx"]["expected_tags"].replace("'", "")
            lines[key] = f"{key}.{field}={one['ctx']['tag']}: it must be one of {words}"
        else:
            lines.setdefault(key, f"{key}={_shown(_value(plain, key))}: {_needed(key, config)}")
    return list(lines.values())


def _key(path: list[Any], plain: dict[str, Any]) -> str:
    """Return the name of a setting from pydantic's path.

    pydantic inserts the member of a union that it tried. Path elements that are not in the
    configuration, except the last one, are such insertions.
    """
    parts: list[str] = []
    value: Any = plain
    for number, part in enumerate(path):
        if isinstance(value, dict) and (part in value or number == len(path) - 1):
            if not isinstance(part, str) or "[" in part:
                break
            parts.append(part)
            value = value.get(part)
        else:
            break
    return ".".join(map(str, parts))


def _value(plain: Any, key: str) -> Any:
    for part in key.split("."):
        plain = plain.get(part) if isinstance(plain, dict) else None
    return plain


def _shown(value: Any) -> str:
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def unknown(key: str, config: type[BaseModel]) -> str:
    """Describe a setting that does not exist: its current name, or the nearest one."""
    last = key.rpartition(".")[2]
    if key in RENAMED:
        return f"this setting is called {RENAMED[key]} now"
    if choices := owners(config, key):
        return f"it belongs to {' and '.join(choices)}, and another is chosen"
    if key in keys(config):  # a mapping of the user's own names
        return f"a name that it does not have yet is added by a plus, as '+{key}={{NAME: VALUE}}'"
    if key.partition(".")[0] in ("experiment", "ablation"):
        return f"its file has settings outside of any section: its first line must be '{GLOBAL}'"
    for word in (key, last):
        if word.lower() in NOT_NEEDED:
            return f"there is no such setting: {NOT_NEEDED[word.lower()]}"
    near = nearest(key, config)
    meant = f"; did you mean {', '.join(near)}?" if near else ""
    return f"there is no such setting{meant or '; `python run.py --help` lists them'}"


def nearest(key: str, config: type[BaseModel]) -> list[str]:
    """Return the settings that were probably meant.

    Settings of the same section come first, then those with the same last word.
    """
    section, _, last = key.rpartition(".")
    names = keys(config)
    wanted = ELSEWHERE.get(last.lower(), last).split()
    same = [one for one in names if one.rpartition(".")[2] in wanted]
    if same:
        return [one for one in same if one.startswith(f"{section}.")] or same[:4]
    within = [one for one in names if section and one.startswith(f"{section}.")]
    ends = {one.rpartition(".")[2]: one for one in within}
    if close := get_close_matches(last, ends, 3, 0.7):
        return [ends[one] for one in close]
    if section == "model":
        return [f"model.config.{last}"]
    sections = dict.fromkeys(name.partition(".")[0] for name in names)
    top, _, rest = key.partition(".")
    if top not in sections and (close := get_close_matches(top, sections, 1, 0.7)):
        renamed = f"{close[0]}.{rest}" if rest else close[0]
        return [renamed] if not rest or renamed in names else nearest(renamed, config)
    words = {one.rpartition(".")[2] for one in names}
    close = get_close_matches(last, words, 2, 0.75)
    matches = [one for one in names if one.rpartition(".")[2] in close][:4]
    return matches or get_close_matches(key, names, 3, 0.6)


def no_choice(group: str, choice: str, choices: list[str]) -> str:
    """Describe `group=choice` if the group has no such choice."""
    known = CHOICES.get(group, {}).get(choice.lower())
    lower = {one.lower(): one for one in choices}
    close = [lower[one] for one in get_close_matches(choice.lower(), lower, 2, 0.5)]
    held = [one for one in choices if len(one) > 1 and choice.lower().endswith(one.lower())]
    meant = known or ", ".join(held or close)
    hint = f"did you mean {group}={meant}? " if meant else ""
    return f"{group}={choice}: {hint}choose one of {', '.join(choices)}"


def composing(error: Exception, config: type[BaseModel]) -> str:
    """Describe an error of Hydra's composition in one line."""
    # an error that wraps another may have an empty message
    text = (str(error) or str(error.__cause__)).split("Config search path")[0].strip()
    if match := re.search(r"Could not override '([^']+)'|not in struct\s+full_key: (\S+)", text):
        key = match[1] or match[2]
        return f"{key}: {unknown(key, config)}"
    if match := re.search(r"Could not find '([^'/]+)/([^']*)'", text):
        choices = text.partition("Available options in")[2].partition(":")[2].split()
        return no_choice(match[1], match[2], choices)
    return f"{text}; `python run.py --help` lists the settings and their choices"


def _needed(key: str, config: type[BaseModel]) -> str:
    allowed = dict.fromkeys(describe(field) for field in fields(config, key))
    if not allowed:
        values = (describe_values(field) for field in _holders(key, config))
        allowed = dict.fromkeys(value for value in values if value)
    return f"it must be {' or '.join(allowed)}" if allowed else "another value is needed"


def _holders(key: str, config: type[BaseModel]) -> Iterator[FieldInfo]:
    """Yield the fields with user-defined names of which this key is an entry."""
    while "." in key:
        key = key.rpartition(".")[0]
        yield from fields(config, key)
