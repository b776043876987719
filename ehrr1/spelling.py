"""Rewrite command-line arguments into Hydra's grammar, and name variants."""

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
"""Groups whose choice alone names a folder, in the order of the stages that they affect."""

RELEASED = "released"
"""The experiment with the released hyper-parameters."""

RELEASED_SYNTHETIC = "released_synthetic"
"""The experiment with the released hyper-parameters on synthetic records."""

INVENTED = {"model": {"tiny"}, "data": {"synthetic", *BENCHMARKS}}
"""Choices of model and data for which the demo's settings (minutes, 320 tokens) are suitable."""

LONGEST_NAME = 80
"""Maximum number of characters of a folder's name."""

SEVERAL = ("logger", "callbacks")
"""Groups of which several choices can be made: `logger=[tensorboard,csv]`."""

QUOTES = ("'", '"')

PLACES = frozenset({"output_root", "variant", "stage", "experiment", "overwrite"})
"""Overrides that select what to run and where, and do not change how."""


def spelled_out(arguments: list[str], swept: bool = False) -> list[str]:
    """Return the arguments rewritten in Hydra's grammar.

    `model=FOLDER` or `model=OWNER/NAME` becomes the choice and its path; a benchmark with its own
    records adds its data; files and texts are quoted; and an experiment is added if real data or a
    real model are chosen without one.

    swept: a comma separates the values of a sweep.
    """
    found = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key == "model" and is_place(value) and not (swept and "," in value):
            folder, name = value.rstrip("/"), short(value)
            if name == "hf":  # the folder of a run: outputs/demo/rl/hf becomes demo-rl
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
        # inserted among the overrides, since argparse accepts no overrides both before and after
        # `-m`
        place = next(n for n, one in enumerate(found) if key_of(one) in INVENTED)
        chosen = any(key_of(one) == "data" for one in found)
        found.insert(place, f"experiment={RELEASED if chosen else RELEASED_SYNTHETIC}")
    return found


def is_place(value: str) -> bool:
    """Return whether `model=value` is a folder or a name on the hub, and not a choice."""
    chosen = (Path(__file__).parent / "conf" / "model" / f"{value}.yaml").exists()
    return "/" in value or (Path(value, "config.json").is_file() and not chosen)


def refuse_no_choice(arguments: Sequence[str], conf: Path) -> None:
    """Raise UserError for a group whose value cannot be the name of a choice."""
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
    """Return whether the arguments choose a real model or real records but no experiment.

    The demo's settings (minutes, 320 tokens) are not suitable for them.
    """
    told = {key_of(one): one.partition("=")[2] for one in arguments}
    real = any(set(told[key].split(",")) - names for key, names in INVENTED.items() if key in told)
    return real and "experiment" not in told


def _as_typed(value: str, swept: bool) -> str:
    """Quote a file name or a text unless it is another element of Hydra's grammar."""
    if value == "null" or value[:1] in ("'", '"', "{") or "${" in value:
        return value
    if value[:1] == "[" and value[-1:] == "]":
        parts = [one.strip() for one in value[1:-1].split(",") if one.strip()]
        return f"[{','.join(one if one[0] in QUOTES else quoted(one) for one in parts)}]"
    several = swept and ("," in value or re.match(r"\w+\(.*\)$", value))
    return value if several else quoted(value)


def quoted(value: str) -> str:
    """Return a text quoted for Hydra's grammar, whatever characters it contains."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return "'" + escaped.replace("${", r"\${") + "'"


def folder_word(override: str) -> str:
    """Return an override as a part of a folder's name.

    A hash represents characters that a name cannot contain.
    """
    key, _, value = override.partition("=")
    text = value if key in NAMED_BY_CHOICE else f"{key_of(override)}={value}"
    plain = re.sub(r"[^A-Za-z0-9_.=+-]+", "_", text).strip("_")
    return plain if plain == text else f"{plain[:60]}_{sha256(text.encode()).hexdigest()[:6]}"


def level_name(words: Sequence[tuple[str, bool]]) -> str:
    """Join the words of settings, each with whether it is swept, to one folder's name.

    If the name is too long, a hash replaces the words that all runs of the sweep share or, if that
    does not suffice, all words.
    """
    whole = "-".join(word for word, _ in words)
    if len(whole) <= LONGEST_NAME:
        return whole
    fixed = [word for word, swept in words if not swept]
    name = "-".join([*([counted(fixed)] if fixed else []), *(w for w, swept in words if swept)])
    return name if len(name) <= LONGEST_NAME else counted([word for word, _ in words])


def counted(words: Sequence[str]) -> str:
    """Abbreviate many words to their number and a hash."""
    return f"{len(words)}_settings_{sha256('-'.join(words).encode()).hexdigest()[:10]}"


def key_of(override: str) -> str:
    """Return the key of an override: `adapt.lr` for `+adapt.lr=3e-4`."""
    return override.partition("=")[0].lstrip("+~")


def fixed_keys(arguments: Iterable[str]) -> list[str]:
    """Return the keys of overrides that are the same in each job of a multirun.

    Raises hydra.errors.OverrideParseException.
    """
    told = [one for one in arguments if "=" in one and not one.startswith(("-", "hydra"))]
    parsed = OverridesParser.create().parse_overrides(told)
    return [
        key_of(text) for text, one in zip(told, parsed, strict=True) if not one.is_sweep_override()
    ]


def variant_of(overrides: Iterable[str]) -> str:
    """Return the variant name of a job of Hydra's multirun from its overrides.

    Overrides that select places or do not change a result are left out.
    """
    elsewhere = ("hydra", "launcher", "search", *(f"{place}=" for place in PLACES))
    told = [one for one in overrides if not one.startswith(elsewhere)]
    return "-".join(folder_word(one) for one in told if key_of(one) not in NOT_COMPARED)
