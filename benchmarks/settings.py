"""The configuration as the command line composes it, for benchmarks that call functions."""

from hydra import compose, initialize_config_dir

from benchmarks.measure import ROOT
from ehrr1.config.schema import Config, read
from ehrr1.spelling import spelled_out


def composed(*overrides: str) -> Config:
    """The demo's configuration with these overrides, checked. Raises UserError."""
    # the name of an experiment is known to Hydra's own command line only
    told = spelled_out([*overrides, "name=benchmark"])
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return read(compose("config", overrides=told), told)
