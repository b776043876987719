"""The command as the user typed it, and the commands that follow from it."""

import shlex
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

from ehrr1.config.together import READ_BY
from ehrr1.spelling import key_of

TYPED: list[str] = []
"""The words behind the command, before they are spelled out for Hydra."""


OF_ONE_STAGE = (
    *("overwrite", "graph.show"),
    *("data.shard", "data.shards", "eval.shard", "eval.shards"),
)
"""Settings that the command of another stage does not take over."""


def command() -> str:
    """Return what the user typed: `run.py`, or `ehrr1` where the package is installed."""
    name = Path(sys.argv[0]).name
    return "ehrr1" if name == "__main__.py" else name


def typed_as() -> str:
    """Return the command as it stands before its settings."""
    return "ehrr1" if command() == "ehrr1" else "python run.py"


def with_stage(stage: str) -> str:
    """Return the command that runs another stage of this run, for a shell.

    It has what was typed, without what that stage refuses or shares among processes.
    """
    words = [
        word
        for word in words_with(stage)
        if (key := key_of(word)) not in OF_ONE_STAGE and stage in READ_BY.get(key, (stage,))
    ]
    return f"{typed_as()} {shlex.join(words)}"


def words_with(stage: str) -> list[str]:
    """Return the words of this command with another stage."""
    words = [word for word in typed() if key_of(word) != "stage"]
    # among the overrides: argparse takes none before a flag and others behind it
    overrides = [n for n, word in enumerate(words) if "=" in word and not word.startswith("-")]
    place = overrides[0] if overrides else len(words)
    return [*words[:place], f"stage={stage}", *words[place:]]


def typed() -> list[str]:
    """Return the words of this command.

    A job that a launcher has sent elsewhere knows its own overrides alone.
    """
    if not TYPED and HydraConfig.initialized():
        return list(HydraConfig.get().overrides.task)
    return TYPED
