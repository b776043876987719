"""The whole configuration, typed: every setting there is, what it may be, and nothing else.

Values stand in conf/ and experiments/ alone; Hydra composes them, `read` turns the result into a
`Config` and raises one UserError for all that is wrong. Rules for settings that go together are in
`together.py`; files, and what a stage needs of its data, are checked by whoever opens them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import Field, ValidationError, model_validator

from ehrr1.config.complaints import TAGGED, problems
from ehrr1.config.fields import owners
from ehrr1.config.names import WordingName, usual_wording
from ehrr1.config.records import Audit, Card, Concepts, Data, Export, Graph
from ehrr1.config.together import conflicts
from ehrr1.config.training import (
    RL,
    Adapt,
    Cluster,
    Launcher,
    Loss,
    ModelSettings,
    Plan,
    Reason,
    Search,
    TrainerSettings,
)
from ehrr1.config.types import Count, Name, PathText, Section, Target, Text
from ehrr1.config.writers import AnswerModes, Chains, Engine, Eval, Infer, Rollout
from ehrr1.errors import UserError


class Inputs(Section):
    """Finished runs to read in place of those beside this one."""

    prepare: PathText | None
    graph: PathText | None
    chains: PathText | None
    adapt: PathText | None
    reason: PathText | None
    rl: PathText | None


class Config(Section):
    """One configuration for all stages."""

    stage: Literal[
        "prepare",
        "export",
        "audit",
        "card",
        "graph",
        "chains",
        "adapt",
        "reason",
        "rl",
        "eval",
        "infer",
        "plan",
        "consolidate",
        "curriculum",
    ]
    name: Name
    variant: Text | None
    output_root: PathText
    overwrite: bool
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)]
    inputs: Inputs
    data: Data
    model: ModelSettings
    trainer: TrainerSettings
    logger: dict[str, Target]
    callbacks: dict[str, Target]
    rollout: Rollout
    engine: Engine
    concepts: Concepts
    chains: Chains
    export: Export
    audit: Audit
    graph: Graph
    loss: Loss
    adapt: Adapt
    reason: Reason
    rl: RL
    card: Card
    plan: Plan
    cluster: Cluster
    eval: Eval
    infer: Infer
    launcher: Launcher
    search: Search
    answer: AnswerModes
    candidates: Literal["none", "list"]
    wording: WordingName
    rescore: PathText | None
    compare: list[PathText] | None
    record: PathText | None
    question: Text | None
    run: PathText | None
    checkpoint: Count | Literal["last", "best"]

    @model_validator(mode="before")
    @classmethod
    def _usual_wording(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("wording", "") is None:
            given = given | {"wording": _wording_of(given)}
        return given

    def training(self, stage: str) -> Adapt | Reason | RL:
        """The section of a stage that trains."""
        return self.rl if stage == "rl" else self.supervised(stage)

    def supervised(self, stage: str) -> Adapt | Reason:
        """The section of a supervised stage."""
        return self.adapt if stage == "adapt" else self.reason


def _wording_of(given: dict[str, Any]) -> WordingName:
    """The wording of a composed configuration that chooses none."""
    data, model, engine = (
        part if isinstance(part, dict) else {}
        for part in (given.get("data"), given.get("model"), given.get("engine"))
    )
    models = (model.get("name"), model.get("path"), engine.get("model"))
    return usual_wording(str(data.get("name")), *(str(name) for name in models if name))


def read(cfg: DictConfig, overrides: Sequence[str] = ()) -> Config:
    """The composed configuration, checked. Raises UserError that lists everything wrong.
    `overrides` are those that it was composed with."""
    config = parse(cfg, overrides)
    check(config)
    return config


def parse(cfg: DictConfig, overrides: Sequence[str] = ()) -> Config:
    """The composed configuration, each setting checked by itself. Raises UserError."""
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    leave_replaced(plain, {one.partition("=")[0].lstrip("+") for one in overrides})
    try:
        return Config.model_validate(plain)
    except ValidationError as error:
        raise UserError("; ".join(problems(error, plain, Config))) from None


def leave_replaced(plain: dict[str, Any], typed: set[str]) -> None:
    """Leave out what an experiment sets for its own choice of a group (`chains.max_evidence`) where
    the command line makes another (`chains=anthropic`)."""
    for section in typed.intersection(TAGGED):
        settings, tag = plain[section], str(Config.model_fields[section].discriminator)
        if not isinstance(settings, dict):
            continue
        for name in set(settings) - {key.removeprefix(f"{section}.") for key in typed}:
            choices = owners(Config, f"{section}.{name}")
            if choices and f"{section}={settings[tag]}" not in choices:
                del settings[name]


def check(config: Config) -> None:
    """Raise UserError for settings that make no sense beside each other."""
    if found := conflicts(config):
        raise UserError("; ".join(found))


def recorded(folder: Path) -> Config:
    """The configuration of a begun run. Raises UserError for one of another version."""
    there = OmegaConf.load(folder / "config.yaml")
    assert isinstance(there, DictConfig)
    try:
        return parse(there)
    except UserError as error:
        raise UserError(f"{folder / 'config.yaml'} is of another version: {error}") from None


def value_of(config: Section, key: str) -> Any:
    """The setting `adapt.lr`; None where this choice of a group has none such."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else vars(value).get(part)
        if value is None:
            return None
    return value
