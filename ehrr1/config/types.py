"""Types of settings that several sections share."""

import os.path
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """Settings by name.

    Unknown settings are rejected, and values are not converted: "3" is not a number.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    def of(self, name: str) -> Any:
        """Return the setting of this name; raises KeyError if there is none."""
        return vars(self)[name]

    def plain(self) -> dict[str, Any]:
        """Return the settings as dicts, lists and values, as in config.yaml."""
        return self.model_dump(exclude_unset=True)


@dataclass(frozen=True)
class Place:
    """Marker of a setting that is a file or a folder, whose value on the command line is quoted."""


@dataclass(frozen=True)
class Instance:
    """Marks a mapping that names a class and the arguments it is called with."""


@dataclass(frozen=True)
class Function:
    """Marks the path of a function."""


def _instance(value: dict[str, Any]) -> dict[str, Any]:
    """Return `value` if `_target_` is a dotted path and no other key of Hydra's is set.

    `_partial_: true` is allowed, as optimizers are often written with it. Raises ValueError.
    """
    parts = str(value.get("_target_", "")).split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise ValueError("_target_ is no dotted path")
    own = {key for key in value if str(key).startswith("_")}
    if own - {"_target_", "_partial_"} or value.get("_partial_", True) is not True:
        raise ValueError("another key of Hydra's")
    return value


def _text(value: Any) -> Any:
    """Convert a number to text: the grammar reads `data.root=2024` and `variant=1e3` as numbers."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return str(value) if number else value


def _path(value: Any) -> Any:
    value = _text(value)
    return os.path.expanduser(value) if isinstance(value, str) else value


Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
ProperShare = Annotated[float, Field(gt=0, lt=1)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, BeforeValidator(_text)]
Name = Annotated[str, BeforeValidator(_text), Field(min_length=1)]
PathText = Annotated[str, BeforeValidator(_path), Field(min_length=1), Place()]
Target = Annotated[dict[str, Any], AfterValidator(_instance), Instance()]
"""A class and its arguments, as Hydra writes them: `{_target_: module.Class, argument: value}`."""
FunctionPath = Annotated[str, Field(pattern=r"^[^\W\d]\w*(\.[^\W\d]\w*)+$"), Function()]
"""A function of the user's: `module.function`."""
AnswerMode = Literal["direct", "think", "both"]
