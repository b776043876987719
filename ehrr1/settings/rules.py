"""What a value may be."""

from dataclasses import dataclass
from typing import Any

from omegaconf import ListConfig


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
        fits = isinstance(value, int) or (isinstance(value, float) and not self.whole)
        if isinstance(value, bool) or not fits:
            return f"a {'whole ' * self.whole}number is needed{' or null' * self.none}"
        value = float(value)
        if value < self.low or value > self.high or (self.above and value == self.low):
            sign = ">" if self.above else ">="
            upper = f" and <= {self.high:g}" if self.high < float("inf") else ""
            return f"it must be {sign} {self.low:g}{upper}"
        return None


@dataclass(frozen=True)
class Choice:
    """One of a few words."""

    words: tuple[str | None, ...]

    def problem(self, value: Any) -> str | None:
        return None if value in self.words else f"choose one of {', '.join(map(_word, self.words))}"


@dataclass(frozen=True)
class Switch:
    """true or false."""

    def problem(self, value: Any) -> str | None:
        return None if isinstance(value, bool) else "choose true or false"


@dataclass(frozen=True)
class Devices:
    """How many processes: a number, or `auto`."""

    def problem(self, value: Any) -> str | None:
        if value == "auto" or COUNT.problem(value) is None:
            return None
        return "a whole number is needed, or auto for one a GPU"


@dataclass(frozen=True)
class Saved:
    """A checkpoint: the last, the best, or the steps done."""

    def problem(self, value: Any) -> str | None:
        if value in ("last", "best") or COUNT.problem(value) is None:
            return None
        return "choose last, best, or the number of steps done in it"


@dataclass(frozen=True)
class Text:
    """A word, or null."""

    def problem(self, value: Any) -> str | None:
        return None if value is None or isinstance(value, str) else "a text is needed, or null"


@dataclass(frozen=True)
class Texts:
    """A list of texts."""

    def problem(self, value: Any) -> str | None:
        fits = isinstance(value, list | ListConfig) and all(isinstance(one, str) for one in value)
        return None if fits else "a list of texts is needed: [ONE,OTHER], or []"


def _word(word: str | None) -> str:
    return "null" if word is None else word


Rule = Number | Choice | Switch | Devices | Saved | Text | Texts
COUNT = Number(1, whole=True)
COUNT_OR_ALL = Number(1, whole=True, none=True)
SHARE = Number(0, 1)
POSITIVE = Number(0, above=True)
