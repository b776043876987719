"""The configuration as the command line composes it, for tests that call functions."""

from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from ehrr1.config.schema import Config, parse
from ehrr1.spelling import spelled_out
from tests.conftest import ROOT


def raw(*overrides: str) -> DictConfig:
    """Return what Hydra composes, before the schema; its `name` is the experiment's."""
    return deepcopy(_composed(overrides))


@cache
def _composed(overrides: tuple[str, ...]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        whole = compose("config", overrides=spelled_out(list(overrides)), return_hydra_config=True)
    if OmegaConf.is_interpolation(whole, "name"):  # of Hydra's own settings, which are left out
        whole.name = whole.hydra.runtime.choices.experiment
    return OmegaConf.masked_copy(whole, [key for key in whole if key != "hydra"])


def composed(*overrides: str, **values: Any) -> Config:
    """The configuration with these overrides and values, a section's by name; each setting is
    checked by itself. Raises UserError."""
    merged = OmegaConf.merge(raw(*overrides), values)
    assert isinstance(merged, DictConfig)
    return parse(merged, spelled_out(list(overrides)))


def changed(section: Any, **changes: Any) -> Any:
    """A copy of a section with other values, checked. Raises pydantic's ValidationError."""
    return type(section).model_validate(section.model_dump(exclude_unset=True) | changes)


def record(config: Config, folder: Path) -> None:
    """`config.yaml` as a run writes it."""
    (folder / "config.yaml").write_text(yaml.safe_dump(config.plain()), encoding="utf-8")
