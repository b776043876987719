"""Checks of the composed configuration, all problems at once, before anything expensive.

Hydra knows which settings exist; this table says which values make sense. Files, folders and
what a stage needs of its data are checked by whoever opens them.
"""

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from ehrr1.errors import UserError


@dataclass(frozen=True)
class Number:
    """A number from `low` to `high`; `above` excludes `low` itself, `none` allows null."""

    low: float = 0
    high: float = float("inf")
    whole: bool = False
    above: bool = False
    none: bool = False

    def problem(self, value: Any) -> str | None:
        if value is None and self.none:
            return None
        kinds: tuple[type, ...] = (int,) if self.whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            return f"a {'whole ' * self.whole}number is needed{' or null' * self.none}"
        if value < self.low or value > self.high or (self.above and value == self.low):
            sign = ">" if self.above else ">="
            upper = f" and <= {self.high:g}" if self.high < float("inf") else ""
            return f"it must be {sign} {self.low:g}{upper}"
        return None


@dataclass(frozen=True)
class Choice:
    """One of a few words."""

    words: tuple[str, ...]

    def problem(self, value: Any) -> str | None:
        return None if value in self.words else f"choose one of {', '.join(self.words)}"


@dataclass(frozen=True)
class Switch:
    """true or false."""

    def problem(self, value: Any) -> str | None:
        return None if isinstance(value, bool) else "choose true or false"


COUNT = Number(1, whole=True)
COUNT_OR_ALL = Number(1, whole=True, none=True)
SHARE = Number(0, 1)
POSITIVE = Number(0, above=True)

RULES: dict[str, Number | Choice | Switch] = {
    "seed": Number(0, 2**31 - 1, whole=True),
    "overwrite": Switch(),
    "split": Choice(("train", "validation", "test", "all")),
    "limit": COUNT_OR_ALL,
}


def check(cfg: DictConfig) -> None:
    """Raise one UserError that lists every setting with a value that makes no sense."""
    problems = []
    for name, rule in RULES.items():
        value = OmegaConf.select(cfg, name)
        problem = rule.problem(value)
        if problem:
            problems.append(f"{name}={value}: {problem}")
    if problems:
        raise UserError("; ".join(problems))
