"""What the settings of every attack have in common: they come from a suite's data, and mistakes are named."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ..attack import Setting


def _split(value: object) -> object:
    """A suite's settings are plain values: a list there is text, "0, 0.5, 1"."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


Listed = BeforeValidator(_split)
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0.0, le=1.0, allow_inf_nan=False)]


class Settings(BaseModel):
    """``seed`` decides every draw; the same seed gives the same result on a CPU."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(0, ge=0)

    def recorded(self) -> dict[str, Setting]:
        """All settings as a report holds them, lists as text; those that are None left out."""
        return {
            name: value if isinstance(value, (str, int, float, bool)) else ", ".join(map(str, value))
            for name, value in self.model_dump(exclude_none=True).items()
        }
