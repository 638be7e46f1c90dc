"""Settings of the market model."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from schemas.errors import SettingsError


class EnvSettings(BaseModel):
    """What an episode is, what trading costs, and how the learner is paid.

    The defaults suit daily bars of liquid stocks. Rates are fractions, not per cent: 0.0005 is 5 basis points.
    Built from a mapping with :meth:`from_mapping`, a bad value raises ``SettingsError`` in one line.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    window: int = Field(32, ge=1, description="Bars in an observation.")
    episode_length: int | None = Field(
        256, ge=1, description="Steps (bars) after which an episode is truncated; none: at the end of the data."
    )
    starts: Literal["random", "start"] = Field(
        "random",
        description="First rows: at 'random' with room for episode_length, or at the 'start' of the data.",
    )
    targets: tuple[float, ...] = Field(
        (-1.0, 0.0, 1.0),
        min_length=2,
        description="Target position of each action, as a multiple of equity: -1 all short, 0 flat, 1 all long.",
    )
    initial_cash: float = Field(
        10_000.0, gt=0, allow_inf_nan=False, description="Equity at the start, in the currency of the prices."
    )
    fee: float = Field(0.0005, ge=0, lt=1, description="Fee of a fill, as a fraction of its notional.")
    slippage: float = Field(
        0.0002, ge=0, lt=1, description="Distance of the fill price from the open, to our loss, as a fraction."
    )
    borrow: float = Field(
        0.0, ge=0, lt=1, description="Cost of a short position per bar, as a fraction of its notional at the close."
    )
    lot: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="Smallest tradable quantity, in units; 0 allows any fraction."
    )
    reward_scale: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="Factor on the reward that the learner sees; records stay unscaled."
    )

    @field_validator("targets")
    @classmethod
    def _targets_are_distinct_numbers(cls, targets: tuple[float, ...]) -> tuple[float, ...]:
        if any(target - target != 0 for target in targets):
            raise ValueError("every target must be a finite number")
        if len(set(targets)) != len(targets):
            raise ValueError("targets must differ from each other")
        return targets

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Build settings from a mapping of names to values.

        Raises:
            SettingsError: A name is unknown (the nearest known one is suggested) or a value is out of range.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise SettingsError("; ".join(_explain(item, cls) for item in error.errors())) from error


def _explain(item: Any, model: type[BaseModel]) -> str:
    name = str(item["loc"][0]) if item["loc"] else "settings"
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, model.model_fields, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known settings: {', '.join(model.model_fields)}"
        return f"unknown setting {name!r}; {hint}"
    return f"setting {name!r}: {item['msg']}, got {item['input']!r}"
