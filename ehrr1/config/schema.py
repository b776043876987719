"""The typed schema of the whole configuration.

Values are only in conf/ and experiments/. Hydra composes them, and `read` converts the result to a
`Config` or raises one UserError for everything that is wrong. Rules for combinations of settings
are in `together.py`; files, and the requirements of a stage on its data, are checked where they are
opened.
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
from ehrr1.config.writers import AnswerModes, Chains, EngineConfig, Eval, Infer, RolloutConfig
from ehrr1.errors import UserError
from ehrr1.files import read_yaml


class Inputs(Section):
    """Finished runs to read instead of those next to this one."""

    prepare: PathText | None
    graph: PathText | None
    chains: PathText | None
    adapt: PathText | None
    reason: PathText | None
    rl: PathText | None


class Config(Section):
    """The configuration of all stages."""

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
    check: Literal["quick", "full"]
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)]
    tokenise_only: bool = False
    inputs: Inputs
    data: Data
    model: ModelSettings
    trainer: TrainerSettings
    logger: dict[str, Target]
    callbacks: dict[str, Target]
    rollout: RolloutConfig
    engine: EngineConfig
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
    predictions: PathText | None
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
        """Return the section of a stage that trains."""
        return self.rl if stage == "rl" else self.supervised(stage)

    def supervised(self, stage: str) -> Adapt | Reason:
        """Return the section of a supervised stage."""
        return self.adapt if stage == "adapt" else self.reason


def _wording_of(given: dict[str, Any]) -> WordingName:
    """Return the default wording for a composed configuration that does not set one."""
    data, model, engine = (
        part if isinstance(part, dict) else {}
        for part in (given.get("data"), given.get("model"), given.get("engine"))
    )
    models = (model.get("name"), model.get("path"), engine.get("model"))
    return usual_wording(str(data.get("name")), *(str(name) for name in models if name))


def read(cfg: DictConfig, overrides: Sequence[str] = ()) -> Config:
    """Return the composed configuration, checked.

    overrides: the command line's overrides of the composition. Raises UserError that lists
    everything wrong.
    """
    config = parse(cfg, overrides)
    check(config)
    return config


def parse(cfg: DictConfig, overrides: Sequence[str] = ()) -> Config:
    """Return the composed configuration with each setting checked on its own.

    Raises UserError that lists everything wrong.
    """
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    leave_replaced(plain, {one.partition("=")[0].lstrip("+") for one in overrides})
    try:
        return Config.model_validate(plain)
    except ValidationError as error:
        raise UserError("; ".join(problems(error, plain, Config))) from None


def leave_replaced(plain: dict[str, Any], typed: set[str]) -> None:
    """Remove settings of an experiment for a choice that the command line replaces.

    An example is `chains.max_evidence` of the experiment with `chains=anthropic` on the command
    line.
    """
    for section in typed.intersection(TAGGED):
        settings, tag = plain[section], str(Config.model_fields[section].discriminator)
        if not isinstance(settings, dict):
            continue
        for name in set(settings) - {key.removeprefix(f"{section}.") for key in typed}:
            choices = owners(Config, f"{section}.{name}")
            if choices and f"{section}={settings[tag]}" not in choices:
                del settings[name]


def check(config: Config) -> None:
    """Raise UserError for combinations of settings that are not allowed."""
    if found := conflicts(config):
        raise UserError("; ".join(found))


def recorded(folder: Path) -> Config:
    """Return the configuration of an existing run; raises UserError for one of another version."""
    there = OmegaConf.create(read_yaml(folder / "config.yaml"))
    try:
        return parse(there)
    except UserError as error:
        raise UserError(f"{folder / 'config.yaml'} is of another version: {error}") from None


def value_of(config: Section, key: str) -> Any:
    """Return a setting such as `adapt.lr`, or None if the chosen section does not have it."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else vars(value).get(part)
        if value is None:
            return None
    return value
