"""Expand Hydra overrides to a graph of runs.

A run is one stage of one point of the grid. Its folder depends on the overrides that affect it, so
that points share runs that their differences do not affect: with `rl.loss=grpo,dapo` one `adapt`
serves both. An override affects a stage if it changes, relative to the experiment, a setting on
which the stage's result or an input of the stage depends (`runs.RESULT_SETTINGS`).

The seed affects training only. Records, chains and the questions of an evaluation stay those of the
experiment, since results of different seeds could not be compared otherwise.
"""

from collections.abc import Callable, Sequence
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
from ehrr1.config.schema import Config, check, parse
from ehrr1.config.together import READ_BY
from ehrr1.config.types import Section
from ehrr1.errors import UserError
from ehrr1.runs import (
    NOT_COMPARED,
    RESULT_SETTINGS,
    flat,
    is_finished,
    order,
)
from ehrr1.spelling import PLACES, key_of
from ehrr1.sweeps.road import Planned, Point, Road, Setting, read_by


class Composer:
    """A cache of configurations for many points.

    Hydra composes each combination of groups once, and values are set in copies, because a
    composition takes a sixth of a second and there may be thousands of points.
    """

    def __init__(self) -> None:
        self.composed: dict[tuple[str, ...], DictConfig] = {}
        self.parsed: dict[tuple[str, ...], Config] = {}

    def of(self, settings: Sequence[Setting]) -> Config:
        """Return the configuration with these settings; points share it, so it must not be changed.

        Raises Hydra's and OmegaConf's errors, and UserError.
        """
        key = tuple(one.text for one in settings)
        if key not in self.parsed:
            self.parsed[key] = parse(self._compose(settings), key)
        return self.parsed[key]

    def _compose(self, settings: Sequence[Setting]) -> DictConfig:
        by_hydra = tuple(s.text for s in settings if s.group or not s.swept)
        if by_hydra not in self.composed:
            whole = hydra.compose("config", overrides=list(by_hydra), return_hydra_config=True)
            with open_dict(whole):
                if OmegaConf.is_interpolation(whole, "name"):  # `hydra:` needs a running job
                    whole.name = whole.hydra.runtime.choices.experiment
                del whole["hydra"]
            self.composed[by_hydra] = whole
        values = [one for one in settings if one.swept and not one.group]
        if not values:
            return self.composed[by_hydra]
        cfg = self.composed[by_hydra].copy()
        for setting in values:
            # the schema reports settings that do not exist
            OmegaConf.update(cfg, setting.key, setting.value, force_add=True)
        return cfg


def points(overrides: Sequence[str]) -> list[Point]:
    """Return the points of the grid, with the last override changing fastest.

    Raises Hydra's errors, and UserError.
    """
    loader = GlobalHydra.instance().config_loader()
    parser, groups = OverridesParser.create(config_loader=loader), set(loader.list_groups(""))
    return list(product(*(choices(parsed(one, parser), groups) for one in overrides)))


def parsed(override: str, parser: OverridesParser) -> Override:
    """Return an override parsed by Hydra's grammar; raises UserError."""
    try:
        return parser.parse_overrides([override])[0]  # `parse_override` raises other errors
    except OverrideParseException as error:
        told = str(error).split("See https")[0].strip()
        raise UserError(f"{override}: not in Hydra's grammar: {told}; quote it?") from None


def choices(override: Override, groups: set[str]) -> list[Setting]:
    """Return the values of one override, which is a single one if it is not swept.

    Raises UserError for an interval or a repeated value.
    """
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
        raise UserError(f"{override.input_line}: a value occurs twice")
    if group:
        return [Setting(key, text, None, True, True) for text in texts]
    plain = OverridesParser.create().parse_overrides(texts)
    return [
        Setting(key, text, one.value(), True, False) for text, one in zip(texts, plain, strict=True)
    ]


def plan(overrides: Sequence[str], spelled_out: Callable[[list[str]], list[str]]) -> list[Planned]:
    """Return every run that the overrides request, once each, with inputs first.

    Raises one UserError for all problems: combinations of settings that are not allowed or that a
    training stage would refuse, inputs that are neither requested nor finished, and sweeps that
    affect no requested stage.
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
                problems |= dict.fromkeys(road.refused(planned))
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
    """Return the conflicts of settings at all points for the requested stages, each once."""
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
    """Return (experiment, key, text) of each setting of the grid -> the stages that it affects."""
    found: dict[tuple[str, str, str], frozenset[str]] = {}
    for point in grid:
        for setting in point:
            place = (experiment_of(point), setting.key, setting.text)
            if place not in found:
                found[place] = matters(setting, point, composer, stages)
    return found


def split_stages(overrides: Sequence[str]) -> tuple[tuple[str, ...], list[str]]:
    """Return the requested stages in the order of the curriculum, and the other overrides.

    Raises UserError for a stage that cannot be part of a chain.
    """
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
    """Return the override of a point that selects the experiment, or ""."""
    return next((s.text for s in point if s.key == "experiment"), "")


def matters(
    setting: Setting, point: Point, composer: Composer, asked: Sequence[str]
) -> frozenset[str]:
    """Return the stages whose result one setting changes, directly or through their inputs."""
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
    """Return the settings on which a stage's result depends, as a flat mapping."""
    found: dict[str, Any] = {}
    for section in (s for s in RESULT_SETTINGS[stage] if s != "seed"):
        value = cfg.of(section)
        plain = value.plain() if isinstance(value, Section) else value
        found |= flat(plain, section)
    inputs = {i: cfg.inputs.of(i) for i in read_by(cfg, stage) if cfg.inputs.of(i) is not None}
    return {k: v for k, v in found.items() if k not in NOT_COMPARED} | inputs


def ancestors(cfg: Config, stage: str) -> set[str]:
    """Return all stages that a stage reads, directly or indirectly."""
    return {name for one in read_by(cfg, stage) for name in {one} | ancestors(cfg, one)}
