"""What every section of the configuration is made of: its base class and the types of its values."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Size = tuple[Annotated[int, Field(ge=16)], Annotated[int, Field(ge=16)]]
"""Height and width in pixels."""
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]


class Strict(BaseModel):
    """Base of all sections: unknown keys are errors, values do not change after construction."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
