"""From Hydra overrides to a graph of runs.

A run here is one stage of one point of the grid. Its folder follows from the overrides that matter
for it, so points share what they do not change: with `rl.loss=grpo,dapo` one `adapt` serves both.
An override matters for a stage when it changes a setting that the stage's result depends on
(`runs.RESULT_SETTINGS`), or one that its inputs' depend on, from what the experiment has.

The seed is of training alone: records, chains and the questions of an evaluation stay those of the
experiment, or seeds could not be compared.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict

from ehrr1.config.names import ORDER, TRAINING
from ehrr1.config.schema import Config, check, parse, value_of
from ehrr1.config.together import READ_BY
from ehrr1.config.training import Devices, LocalLauncher
from ehrr1.config.types import Section
from ehrr1.errors import UserError
from ehrr1.runs import (
    NOT_COMPARED,
    OPTIONAL_INPUTS,
    RESULT_SETTINGS,
    differences,
    flat,
    is_finished,
    made,
    needed,
    order,
)
from ehrr1.spelling import PLACES, folder_word, key_of, level_name, quoted


@dataclass(frozen=True)
class Setting:
    """One override of one point: `rl.lr=1e-5`."""

    key: str
    text: str
    value: Any
    swept: bool
    group: bool


Point = tuple[Setting, ...]


@dataclass(frozen=True)
class Planned:
    """One stage of one point. `inputs` are the folders that it reads, `settings` the swept ones
    that it depends on."""

    stage: str
    folder: Path
    overrides: tuple[str, ...]
    inputs: dict[str, Path]
    settings: dict[str, str]
    cfg: Config


class Composer:
    """Configurations of many points: Hydra composes each combination of groups once, values are
    set in copies (a composition takes a sixth of a second, and there may be thousands)."""

    def __init__(self) -> None:
        self.composed: dict[tuple[str, ...], DictConfig] = {}
        self.parsed: dict[tuple[str, ...], Config] = {}

    def of(self, settings: Sequence[Setting]) -> Config:
        """The configuration with these settings, to be read: points share it. Raises Hydra's and
        OmegaConf's errors, and UserError."""
        key = tuple(one.text for one in settings)
        if key not in self.parsed:
            self.parsed[key] = parse(self._compose(settings), key)
        return self.parsed[key]

    def _compose(self, settings: Sequence[Setting]) -> DictConfig:
        by_hydra = tuple(s.text for s in settings if s.group or not s.swept)
        if by_hydra not in self.composed:
            whole = hydra.compose("config", overrides=list(by_hydra), return_hydra_config=True)
            with open_dict(whole):
                if OmegaConf.is_interpolation(whole, "name"):  # `hydra:` is of a running job
                    whole.name = whole.hydra.runtime.choices.experiment
                del whole["hydra"]
            self.composed[by_hydra] = whole
        values = [one for one in settings if one.swept and not one.group]
        if not values:
            return self.composed[by_hydra]
        cfg = self.composed[by_hydra].copy()
        for setting in values:
            # the schema says what does not exist, and what was meant
            OmegaConf.update(cfg, setting.key, setting.value, force_add=True)
        return cfg


def points(overrides: Sequence[str]) -> list[Point]:
    """The grid, the last override changing fastest. Raises Hydra's errors."""
    loader = GlobalHydra.instance().config_loader()
    parser, groups = OverridesParser.create(config_loader=loader), set(loader.list_groups(""))
    return list(product(*(choices(parsed(one, parser), groups) for one in overrides)))


def parsed(override: str, parser: OverridesParser) -> Override:
    """An override in Hydra's grammar. Raises UserError."""
    try:
        return parser.parse_overrides([override])[0]  # `parse_override` has errors of its own
    except OverrideParseException as error:
        told = str(error).split("See https")[0].strip()
        raise UserError(f"{override}: not in Hydra's grammar: {told}; quote it?") from None


def choices(override: Override, groups: set[str]) -> list[Setting]:
    """The values of one override; one where it is not swept."""
    whole = override.get_key_element()
    key = key_of(whole)
    group = override.key_or_group in groups
    if not override.is_sweep_override():
        text = override.input_line or whole
        return [Setting(key, text, None if group else override.value(), False, group)]
    if override.is_interval_sweep():
        raise UserError(
            f"{override.input_line}: an interval is searched, not listed: add search.metric=NAME"
        )
    texts = [f"{whole}={value}" for value in override.sweep_string_iterator()]
    if len(set(texts)) < len(texts):
        raise UserError(f"{override.input_line}: a value stands there twice")
    if group:
        return [Setting(key, text, None, True, True) for text in texts]
    plain = OverridesParser.create().parse_overrides(texts)
    return [
        Setting(key, text, one.value(), True, False) for text, one in zip(texts, plain, strict=True)
    ]


def plan(overrides: Sequence[str], spelled_out: Callable[[list[str]], list[str]]) -> list[Planned]:
    """Every run that the overrides ask for, inputs first, each once.

    Raises UserError, all problems at once, for settings that make no sense, inputs that are neither
    asked for nor there, and sweeps from which nothing follows.
    """
    stages, others = split_stages(spelled_out(list(overrides)))
    composer, found = Composer(), dict[Path, Planned]()
    grid = points(others)
    problems = wrong(grid, composer, stages)
    if problems:
        raise UserError("; ".join(problems))
    effects = effects_of(grid, composer, stages)
    keys = {
        key: frozenset[str]().union(*(e for (_, k, _), e in effects.items() if k == key))
        for key in {setting.key for setting in grid[0]}
    }
    for point in grid:
        cfg = composer.of(point)
        experiment = experiment_of(point)
        plain = composer.of([s for s in point if s.key == "experiment"])
        stages_of = {s.text: effects[experiment, s.key, s.text] for s in point}
        road = Road(cfg, point, stages_of, keys, plain)
        links = [stage for stage in stages if stage in order(cfg) or len(stages) == 1]
        for stage in links:
            planned = road.run(stage, links)
            if planned.folder not in found:
                found[planned.folder] = planned
                problems |= dict.fromkeys(road.other_settings(planned))
            for name, folder in planned.inputs.items():
                if name in links or is_finished(folder):
                    continue
                problems[
                    f"stage={stage} needs '{name}', which is not finished in {folder}: add it to "
                    f"the chain (stage={name},{','.join(stages)}), or give inputs.{name}=DIR"
                ] = None
    idle = {
        s.key for s in grid[0] if s.swept and s.key not in PLACES and not keys[s.key] & set(stages)
    }
    if idle:
        problems[
            f"{', '.join(sorted(idle))}: swept, but the result of {', '.join(stages)} does not "
            "depend on it"
        ] = None
    if problems:
        raise UserError("; ".join(problems))
    return list(found.values())


def wrong(grid: Sequence[Point], composer: Composer, stages: Sequence[str]) -> dict[str, None]:
    """What makes no sense at any point, for the stages that are asked for; each problem once."""
    found: dict[str, None] = {}
    for point in grid:
        try:
            cfg = composer.of(point)
            for stage in stages:
                others = set(stages) - {stage}
                told = [s for s, readers in READ_BY.items() if others.intersection(readers)]
                check(cfg.model_copy(update={"stage": stage, **dict.fromkeys(told)}))
        except UserError as error:
            found[str(error)] = None
    return found


def effects_of(
    grid: Sequence[Point], composer: Composer, stages: Sequence[str]
) -> dict[tuple[str, str, str], frozenset[str]]:
    """Experiment, key and text of each setting of the grid -> the stages that it matters for."""
    found: dict[tuple[str, str, str], frozenset[str]] = {}
    for point in grid:
        for setting in point:
            place = (experiment_of(point), setting.key, setting.text)
            if place not in found:
                found[place] = matters(setting, point, composer, stages)
    return found


def split_stages(overrides: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """The links of the chain, in the curriculum's order, and the other overrides."""
    given = [o.partition("=")[2] for o in overrides if o.startswith("stage=")]
    names = given[-1].split(",") if given else ["curriculum"]
    if names == ["curriculum"]:
        names = list(ORDER)
    if unknown := [name for name in names if name not in ORDER]:
        raise UserError(
            f"stage={given[-1]}: {', '.join(unknown)} cannot be a link of a chain; choose from "
            f"{', '.join(ORDER)}, or curriculum for all"
        )
    return (
        tuple(name for name in ORDER if name in names),
        [o for o in overrides if not o.startswith("stage=")],
    )


def experiment_of(point: Point) -> str:
    return next((s.text for s in point if s.key == "experiment"), "")


def matters(
    setting: Setting, point: Point, composer: Composer, asked: Sequence[str]
) -> frozenset[str]:
    """The stages whose result changes by this one setting, directly or through their inputs."""
    if setting.key in PLACES or setting.key.startswith(("launcher", "search.")):
        return frozenset()
    base = [s for s in point if s.key == "experiment"]
    without = composer.of(base)
    if setting.key == "seed":
        with_it = without
        direct = {stage for stage in asked if stage in TRAINING} or set(asked)
        direct = direct if without.seed != setting.value else set()
    else:
        with_it = composer.of([*base, setting])
        direct = {s for s in ORDER if settings_of(with_it, s) != settings_of(without, s)}
    return frozenset(stage for stage in ORDER if direct & {stage, *ancestors(with_it, stage)})


def settings_of(cfg: Config, stage: str) -> dict[str, Any]:
    """What a stage's result depends on, flat."""
    found: dict[str, Any] = {}
    for section in (s for s in RESULT_SETTINGS[stage] if s != "seed"):
        value = cfg.of(section)
        plain = value.plain() if isinstance(value, Section) else value
        found |= flat(plain, section)
    inputs = {i: cfg.inputs.of(i) for i in read_by(cfg, stage) if cfg.inputs.of(i) is not None}
    return {k: v for k, v in found.items() if k not in NOT_COMPARED} | inputs


def read_by(cfg: Config, stage: str) -> tuple[str, ...]:
    """The stages that a stage reads, where they are there."""
    return tuple(dict.fromkeys(needed(cfg, stage) + OPTIONAL_INPUTS.get(stage, ())))


def ancestors(cfg: Config, stage: str) -> set[str]:
    return {name for one in read_by(cfg, stage) for name in {one} | ancestors(cfg, one)}


@dataclass(frozen=True)
class Road:
    """One point's way through the stages. `stages_of`: a setting's text -> where it matters;
    `keys`: a setting's key -> where any of its values does; `plain`: the experiment alone."""

    cfg: Config
    point: Point
    stages_of: dict[str, frozenset[str]]
    keys: dict[str, frozenset[str]]
    plain: Config

    def run(self, stage: str, asked: Sequence[str]) -> Planned:
        """This point's run of a stage: its folder, its command, what it waits for."""
        inputs = self.inputs(stage, asked)
        kept = [s for s in self.point if self.told_to(s, stage, asked)]
        overrides = [f"stage={stage}", *(s.text for s in kept)]
        if variant := self.variant(stage):
            overrides.append(f"variant={quoted(variant)}")
        overrides += [f"inputs.{name}={quoted(str(path))}" for name, path in inputs.items()]
        told = {
            s.key: s.text.partition("=")[2]
            for s in self.point
            if s.swept and (s.key == "experiment" or stage in self.keys[s.key])
        }
        return Planned(stage, self.folder(stage), tuple(overrides), inputs, told, self.cfg)

    def told_to(self, setting: Setting, stage: str, asked: Sequence[str]) -> bool:
        """Whether the command of a stage has the setting: what is fixed, and what matters for it
        with any value."""
        if setting.key == "variant" or stage not in READ_BY.get(setting.key, (stage,)):
            return False
        if setting.key == "seed":
            trains = any(name in TRAINING for name in asked)
            return stage in TRAINING or not trains
        # the experiment's own value too: TensorBoard's table has what was told
        return not setting.swept or setting.key in PLACES or stage in self.keys[setting.key]

    def variant(self, stage: str) -> str:
        """The path below the experiment that tells what matters for a stage: settings that matter
        from an earlier stage on stand above those that matter from a later one."""
        levels: dict[int, list[Setting]] = {}
        for setting in self.point:
            where = self.stages_of[setting.text]
            if stage in where and not self.fills(setting):
                first = min(ORDER.index(name) for name in where)
                levels.setdefault(first, []).append(setting)
        parts = [
            level_name([(folder_word(s.text), s.swept) for s in levels[level]])
            for level in sorted(levels)
        ]
        return "/".join([*([str(self.cfg.variant)] if self.cfg.variant else []), *parts])

    def fills(self, setting: Setting) -> bool:
        """Whether a setting is a text that the experiment leaves open (`data.root=DIR`): it names
        no folder, or the sweep would not find what `run.py` has made with it."""
        text = not (setting.swept or setting.group) and isinstance(setting.value, str)
        return text and value_of(self.plain, setting.key) is None

    def other_settings(self, planned: Planned) -> list[str]:
        """What is wrong with a run's folder that was begun before, with other settings."""
        if not (planned.folder / "config.yaml").exists():
            return []
        cfg = self.cfg.model_copy(deep=True)
        if not any(override.startswith("seed=") for override in planned.overrides):
            cfg.seed = self.plain.seed
        cfg.trainer.devices = devices_of(cfg, planned.stage)
        if told := differences(cfg, planned.stage, planned.folder, {}):
            return [
                f"{planned.folder} was made with other settings ({'; '.join(told)}): remove it, or "
                "set variant=NAME to keep both"
            ]
        return []

    def folder(self, stage: str) -> Path:
        return Path(self.cfg.output_root) / self.cfg.name / self.variant(stage) / stage

    def inputs(self, stage: str, asked: Sequence[str]) -> dict[str, Path]:
        """The folders that a stage reads, apart from those the settings name."""
        required = needed(self.cfg, stage)
        found = {
            name: self.folder(name) if name in asked else self.there(name, stage)
            for name in read_by(self.cfg, stage)
            if self.cfg.inputs.of(name) is None
        }
        return {
            name: folder
            for name, folder in found.items()
            if name in required or name in asked or is_finished(folder)
        }

    def there(self, stage: str, reader: str) -> Path:
        """Where a stage that is not asked for is, or would have to be: in its own folder, or above
        it, made with the same settings (a run that `run.py` has made there)."""
        cfg = self.cfg.model_copy(deep=True)
        cfg.variant, cfg.seed = self.variant(stage), self.plain.seed
        cfg.trainer.devices = devices_of(cfg, stage)
        return made(cfg, stage, reader)


def devices_of(cfg: Config, stage: str) -> Devices:
    """What a run's command has as `trainer.devices`: on SLURM `auto` is one for each GPU asked."""
    launcher = cfg.launcher
    if (
        cfg.trainer.devices != "auto"
        or isinstance(launcher, LocalLauncher)
        or stage not in TRAINING
    ):
        return cfg.trainer.devices
    asked = {str(name): job.gpus_per_node for name, job in launcher.stages.items()}.get(stage)
    return max(1, launcher.gpus_per_node if asked is None else asked)
