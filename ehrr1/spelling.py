"""What users may type, in the words that Hydra's grammar takes."""

import re
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

from ehrr1.config.complaints import no_choice
from ehrr1.config.fields import places
from ehrr1.config.names import BENCHMARKS
from ehrr1.config.schema import Config
from ehrr1.errors import UserError
from ehrr1.runs import NOT_COMPARED, short

NAMED_BY_CHOICE = ("data", "concepts", "model", "ablation")
"""Groups whose choice alone names a folder, those that matter from an earlier stage on first."""

RELEASED = "released"
"""The experiment of the released hyper-parameters."""

RELEASED_SYNTHETIC = "released_synthetic"
"""The same on the records of the bare command."""

INVENTED = {"model": {"tiny"}, "data": {"synthetic", *BENCHMARKS}}
"""What the demo's minutes and 320 tokens fit."""

LONGEST_NAME = 80
"""Characters of one folder's name."""

SEVERAL = ("logger", "callbacks")
"""Groups of which several choices can be made: `logger=[tensorboard,csv]`."""

QUOTES = ("'", '"')

PLACES = frozenset({"output_root", "variant", "stage", "experiment", "overwrite"})
"""Overrides that say where and what, not how."""


def spelled_out(arguments: list[str], swept: bool = False) -> list[str]:
    """What users type, as Hydra's grammar takes it: `model=FOLDER` or `model=OWNER/NAME` as the
    choice and the path that it stands for, the records of a benchmark that brings its own, files
    and texts quoted, and the experiment that fits what is asked.

    `swept`: a comma divides the values of a sweep.
    """
    found = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "model" and is_place(value) and not (swept and "," in value):
            folder, name = value.rstrip("/"), short(value)
            if name == "hf":  # of a run: outputs/demo/rl/hf is demo-rl
                name = "-".join(Path(folder).parts[-3:-1])
            found += ["model=folder", f"model.path={quoted(folder)}", f"model.name={quoted(name)}"]
        elif key in ("question", "record") or key_of(argument) in places(Config):
            found.append(f"{key}={_as_typed(value, swept)}" if value else argument)
        else:
            found.append(argument)
            own_data = any(given.startswith("data=") for given in arguments)
            if key == "eval" and value in BENCHMARKS and not own_data:
                found.append(f"data={value}")
    if is_real(found):
        # among the overrides: argparse takes none before `-m` and others behind it
        place = next(n for n, one in enumerate(found) if key_of(one) in INVENTED)
        chosen = any(key_of(one) == "data" for one in found)
        found.insert(place, f"experiment={RELEASED if chosen else RELEASED_SYNTHETIC}")
    return found


def is_place(value: str) -> bool:
    """Whether `model=value` is a folder or a name on the hub, and none of the choices."""
    chosen = (Path(__file__).parent / "conf" / "model" / f"{value}.yaml").exists()
    return "/" in value or (Path(value, "config.json").is_file() and not chosen)


def refuse_no_choice(arguments: Sequence[str], conf: Path) -> None:
    """Raise UserError for a group that is set to something else than a choice."""
    for argument in arguments:
        group, equals, value = argument.partition("=")
        folder = conf / group.lstrip("+")
        odd = value in ("", "null") or value[:1] in ("[", "{")
        if not (equals and odd and group and folder.is_dir()):
            continue
        choices = sorted(file.stem for file in folder.glob("*.yaml"))
        wrong = [value]
        if group in SEVERAL and value[:1] == "[":
            told = [one.strip() for one in value.strip("[]").split(",") if one.strip()]
            wrong = [one for one in told if one not in choices]
        if wrong:
            raise UserError(no_choice(group, wrong[0], choices))


def is_real(arguments: Sequence[str]) -> bool:
    """Whether the arguments choose a real model or real records and no experiment: what the demo's
    minutes and 320 tokens do not fit."""
    told = {key_of(one): one.partition("=")[2] for one in arguments}
    real = any(set(told[key].split(",")) - names for key, names in INVENTED.items() if key in told)
    return real and "experiment" not in told


def _as_typed(value: str, swept: bool) -> str:
    """A file's name or a text in quotes, unless it is something else in Hydra's grammar."""
    if value == "null" or value[:1] in ("'", '"', "{") or "${" in value:
        return value
    if value[:1] == "[" and value[-1:] == "]":
        parts = [one.strip() for one in value[1:-1].split(",") if one.strip()]
        return f"[{','.join(one if one[0] in QUOTES else quoted(one) for one in parts)}]"
    several = swept and ("," in value or re.match(r"\w+\(.*\)$", value))
    return value if several else quoted(value)


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


def level_name(words: Sequence[tuple[str, bool]]) -> str:
    """Join the words of settings, each with whether it is swept, to one folder's name. Where they
    are many, those that all runs of the sweep have are told by a hash: a file system has limits."""
    whole = "-".join(word for word, _ in words)
    if len(whole) <= LONGEST_NAME:
        return whole
    fixed = [word for word, swept in words if not swept]
    name = "-".join([*([counted(fixed)] if fixed else []), *(w for w, swept in words if swept)])
    return name if len(name) <= LONGEST_NAME else counted([word for word, _ in words])


def counted(words: Sequence[str]) -> str:
    """Tell many words by their number and a hash."""
    return f"{len(words)}_settings_{sha256('-'.join(words).encode()).hexdigest()[:10]}"


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
