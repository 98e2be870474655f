"""The base class of all configuration sections, and the types of their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

Size = tuple[Annotated[int, Field(ge=16)], Annotated[int, Field(ge=16)]]
"""Height and width in pixels."""
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]

EXCLUSIVE = {"schedule": ("steps", "minutes")}
"""Keys of a section of which one alone decides: giving one drops a default or inherited value of the other."""


def without_replaced(section: str, base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values ``base`` of a section without those that a key of ``given`` takes the place of."""
    keys = EXCLUSIVE.get(section, ())
    replaced = {key for key in keys if any(given.get(other) for other in keys if other != key)}
    return {key: value for key, value in base.items() if key not in replaced}


def check_folder(key: str, value: str) -> str:
    """The path of a run folder; ValueError where it begins with a home that no shell has put in."""
    if value.startswith("~"):
        raise ValueError(f"{key} begins with '~', which only a shell expands; write the folder in full")
    return value


class Strict(BaseModel):
    """Base of all sections: unknown keys are errors, numbers finite, values do not change after construction."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _keep_the_rest(cls, tree: Any) -> Any:
        """A section that gives some keys keeps its own default of the others, which need not be that of its class."""
        if not isinstance(tree, Mapping):
            return tree
        filled = dict(tree)
        for key, field in cls.model_fields.items():
            given, default = filled.get(key), field.default
            # A choice between sections brings the defaults of the one that is chosen.
            if (
                isinstance(given, Mapping)
                and isinstance(default, Strict)
                and field.annotation is type(default)
            ):
                own = without_replaced(key, default.model_dump(exclude_unset=True), given)
                filled[key] = {**own, **given}
        return filled
