"""Types of settings that several sections share."""

import os.path
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


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
Optimizer = Literal["adamw", "muon"]
AnswerMode = Literal["direct", "think", "both"]
