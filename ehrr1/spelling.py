"""What users may type, in the words that Hydra's grammar takes."""

import re
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from ehrr1.config.names import BENCHMARKS
from ehrr1.runs import NOT_COMPARED, short

NAMED_BY_CHOICE = ("data", "model", "concepts", "ablation")
"""Groups whose choice alone names a folder."""

PLACES = frozenset({"output_root", "variant", "stage", "experiment", "overwrite"})
"""Overrides that say where and what, not how."""


def spelled_out(arguments: list[str]) -> list[str]:
    """`model=FOLDER` or `model=OWNER/NAME` as the choice and the path that it stands for; the
    records of a benchmark that brings its own; and texts as Hydra's grammar takes them."""
    found = []
    for argument in arguments:
        group, _, value = argument.partition("=")
        if group == "model" and "/" in value:
            folder, name = value.rstrip("/"), short(value)
            if name == "hf":  # of a run: outputs/demo/rl/hf is demo-rl
                name = "-".join(Path(folder).parts[-3:-1])
            found += ["model=folder", f"model.path={folder}", f"model.name={name}"]
        elif value[:1] not in ("'", '"', "", "[", "{") and (
            (group in ("question", "record") and value != "null")
            or ("/" in value and "=" in value and "(" not in value and "," not in value)  # a folder
        ):
            found.append(f"{group}={quoted(value)}")
        else:
            found.append(argument)
            own_data = any(given.startswith("data=") for given in arguments)
            if group == "eval" and value in BENCHMARKS and not own_data:
                found.append(f"data={value}")
    return found


def quoted(value: str) -> str:
    """A text for Hydra's grammar, whatever stands in it."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return "'" + escaped.replace("${", r"\${") + "'"


def folder_word(override: str) -> str:
    """An override as a part of a folder's name; what a name cannot hold is told by a hash."""
    key, _, value = override.partition("=")
    text = value if key in NAMED_BY_CHOICE else f"{key_of(override)}={value}"
    plain = re.sub(r"[^A-Za-z0-9_.=+-]+", "_", text).strip("_")
    return plain if plain == text else f"{plain[:60]}_{sha256(text.encode()).hexdigest()[:6]}"


def key_of(override: str) -> str:
    """`adapt.lr` of `+adapt.lr=3e-4`."""
    return override.partition("=")[0].lstrip("+~")


def fixed_keys(arguments: Iterable[str]) -> list[str]:
    """The keys of the command line's overrides that are the same in each job of a multirun; raises
    hydra.errors.OverrideParseException."""
    told = [one for one in arguments if "=" in one and not one.startswith(("-", "hydra"))]
    parsed = OverridesParser.create().parse_overrides(told)
    return [
        key_of(text) for text, one in zip(told, parsed, strict=True) if not one.is_sweep_override()
    ]


def variant_of(overrides: Iterable[str]) -> str:
    """The variant of one job of Hydra's multirun by what varies, apart from places and what
    changes no result."""
    elsewhere = ("hydra", "launcher", "search", *(f"{place}=" for place in PLACES))
    told = [one for one in overrides if not one.startswith(elsewhere)]
    return "-".join(folder_word(one) for one in told if key_of(one) not in NOT_COMPARED)
