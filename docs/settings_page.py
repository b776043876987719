"""Write docs/settings.md from conf/ and the schema: `make docs`.

Values and meanings are those of conf/ without an experiment, valid values those of the schema. The
meaning of a setting is the comment beside it. Where `conf/reason.yaml` or `conf/rl.yaml` has none,
it is that of the same setting in `conf/adapt.yaml`; where a choice of a group has none, that of the
choice that it extends, or else of another. `--help` does the same (`ehrr1/config/help.py`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from ehrr1.config.fields import keys
from ehrr1.config.help import comments_of, values_of
from ehrr1.config.schema import Config

CONF = Path(__file__).parent.parent / "conf"
PAGE = Path(__file__).parent / "settings.md"

HEAD = """\
# Settings

Every setting, as `section.setting=VALUE` on the command line. `python run.py --help` prints the
same list with the values of the experiment that you name, and `--cfg job` the whole configuration.
`make docs` writes this page from `conf/` and the schema of all settings (`ehrr1/config/`).

The values are those of `conf/`, before an experiment changes them: without `experiment=` the demo's
apply (`experiments/demo.yaml`), with a real model or real records the released ones
([which experiment](run_folder.md#which-experiment)). `null` means: not set. A group has several
choices, `GROUP=CHOICE`; where their values or meanings differ, each has its choices in front.
"""

LONGEST_VALUE = 48
"""Characters of a value that a cell shows; a longer one is in its file."""

Values = dict[str, dict[str, Any]]
"""Choice (empty for a section without choices) -> setting -> value."""


def page() -> str:
    """Return the whole page."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain = composed()
        general = [name for name in plain if name in keys(Config)]
        sections = [name for name in Config.model_fields if name not in general]
        parts = [HEAD, "## General", table("", {"": {name: plain[name] for name in general}})]
        parts += ["\n\n".join(section(name, plain)) for name in sections]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def composed(*overrides: str) -> dict[str, Any]:
    """Return the configuration without an experiment, interpolations as they stand."""
    whole = compose("config", overrides=["~experiment", *overrides])
    found: Any = OmegaConf.to_container(whole)
    return {str(name): value for name, value in found.items()}


def section(name: str, plain: dict[str, Any]) -> Iterator[str]:
    """Yield the parts of a section: its heading, what its files say of it, its table."""
    yield f"## {name}"
    group = CONF / name
    if not group.is_dir():
        file = CONF / f"{name}.yaml"
        if file.exists():
            yield head_of(file)
        yield table(name, {"": flat(name, plain[name])})
        return
    choices = sorted(file.stem for file in group.glob("*.yaml"))
    yield f"A group: `{name}=CHOICE`."
    heads = {choice: head_of(group / f"{choice}.yaml") for choice in choices}
    yield "\n".join(f"- `{one}`{': ' + head if head else ''}" for one, head in heads.items())
    if name in keys(Config):  # loggers and callbacks: names and arguments of the user's choice
        yield table(name, {"": {name: plain[name]}})
        return
    yield table(name, {one: flat(name, composed(f"{name}={one}")[name]) for one in choices})


def head_of(file: Path) -> str:
    """Return the comment at the head of a file of settings, in one line."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


def flat(key: str, value: Any) -> dict[str, Any]:
    """Return setting -> value, of all settings below `key`."""
    if key in keys(Config) or not isinstance(value, dict):
        return {key: value}
    return {k: v for name, one in value.items() for k, v in flat(f"{key}.{name}", one).items()}


def table(name: str, choices: Values) -> str:
    """Return the table of a section's settings."""
    comments = {choice: comments_of(CONF, name, choice or None) for choice in choices}
    rows = ["| setting | value in `conf/` | valid | meaning |", "|---|---|---|---|"]
    for key in dict.fromkeys(key for values in choices.values() for key in values):
        told = {one: as_typed(values[key]) for one, values in choices.items() if key in values}
        meant = {one: comments[one].get(key, "").replace("<", "&lt;") for one in told}
        value = joined(told, "; ", plain=len(told) == len(choices))
        meaning = joined(meant, "<br>", plain=True)
        cells = [f"`{key}`", value, values_of(key), meaning]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def joined(told: dict[str, str], between: str, plain: bool) -> str:
    """Return the texts, each with its choices in front.

    told: choice -> text. plain: a text of all choices stands without their names.
    """
    choices: dict[str, list[str]] = {}
    for choice, text in told.items():
        choices.setdefault(text, []).append(choice)
    if len(choices) == 1 and plain:
        return next(iter(choices))
    return between.join(f"{', '.join(names)}: {text}" for text, names in choices.items())


def as_typed(value: Any) -> str:
    """Return a value as YAML in one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf")).strip()
    text = text.removesuffix("...").strip()
    return f"`{text}`" if len(text) <= LONGEST_VALUE else "see its file"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
