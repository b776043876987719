"""The configuration as the command line composes it, for tests that call functions."""

from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from ehrr1.config.schema import Config, parse
from tests.conftest import ROOT


def raw(*overrides: str) -> DictConfig:
    """What Hydra composes, before the schema; its `name` is the experiment's."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        whole = compose("config", overrides=list(overrides), return_hydra_config=True)
    chosen = whole.hydra.runtime.choices.experiment
    named = any(one.startswith("name=") for one in overrides)
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", overrides=[*overrides, *([] if named else [f"name={chosen}"])])


def composed(*overrides: str) -> Config:
    """The configuration with these overrides, each setting checked by itself."""
    return parse(raw(*overrides))


def changed(section: Any, **changes: Any) -> Any:
    """A copy of a section with other values, checked. Raises pydantic's ValidationError."""
    return type(section).model_validate(section.model_dump(exclude_unset=True) | changes)
