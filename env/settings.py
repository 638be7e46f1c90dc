"""Settings of the market model."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from schemas.errors import SettingsError

ActionKind = Literal["targets", "hold_buy_sell", "weights", "quantities"]
PositionFeature = Literal["position", "unrealised_return", "time_in_position", "drawdown", "cash_share"]


class EnvSettings(BaseModel):
    """What an episode is, what may be traded and how, what it costs, and how the learner is paid.

    The defaults suit daily bars of liquid stocks. Rates are fractions, not per cent: 0.0005 is 5 basis points.
    Built from a mapping with :meth:`from_mapping`, a bad value raises ``SettingsError`` in one line. docs/env.md has
    the exact rules.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    # -- episodes ---------------------------------------------------------------------------------------------------

    portfolio: bool = Field(
        False, description="Trade all symbols in one account on a common clock; false: one symbol an episode."
    )
    episode_length: int | None = Field(
        256, ge=1, description="Steps (bars) after which an episode is truncated; none: at the end of the data."
    )
    starts: Literal["random", "sequential", "whole"] = Field(
        "random",
        description="First rows: at 'random' with room for episode_length; 'sequential': where the last episode of the"
        " environment ended, from the start of the data again at its end; 'whole': the start of the data, and on to"
        " its end whatever episode_length says.",
    )
    liquidate_at_end: bool = Field(
        False, description="Close what is open at the last close of a truncated episode; false: mark it, keep it open."
    )
    initial_cash: float = Field(
        10_000.0, gt=0, allow_inf_nan=False, description="Equity at the start, in the currency of the prices."
    )

    # -- actions ----------------------------------------------------------------------------------------------------

    actions: ActionKind = Field(
        "targets",
        description="'targets': choose one of targets; 'hold_buy_sell': 0 nothing, 1 the largest of targets, 2 the"
        " smallest; 'weights': any weight of equity, a Box; 'quantities': units to buy (+) or sell (-), a Box.",
    )
    targets: tuple[float, ...] = Field(
        (-1.0, 0.0, 1.0),
        min_length=2,
        description="Target positions of discrete actions, as multiples of equity: -1 all short, 0 flat, 1 all long.",
    )
    short: bool = Field(True, description="Weights may be below 0; discrete targets say it themselves.")
    max_quantity: float = Field(
        100.0, gt=0, allow_inf_nan=False, description="Largest order of 'quantities', in units, per symbol."
    )
    no_trade_band: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="Weights nearer than this to the present ones send no order."
    )

    # -- execution --------------------------------------------------------------------------------------------------

    lot: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="Smallest tradable quantity, in units; 0 allows any fraction."
    )
    min_notional: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="Orders worth less are dropped, unless they close a position."
    )
    max_volume_share: float | None = Field(
        None, gt=0, le=1, description="Part of a bar's volume that an order may take; none: all that it wants."
    )
    remainder: Literal["cancel", "carry"] = Field(
        "cancel", description="What happens to the part of an order that a bar could not fill."
    )
    stop_loss: float | None = Field(
        None, gt=0, lt=1, description="Close at this fraction from the average entry price, to our loss."
    )
    take_profit: float | None = Field(
        None, gt=0, description="Close at this fraction from the average entry price, to our gain."
    )
    trailing_stop: float | None = Field(
        None, gt=0, lt=1, description="Close at this fraction from the best price since the entry."
    )
    protect_by_action: bool = Field(
        False,
        description="With weights or quantities: each step chooses the distances of the protective orders that are set,"
        " from 0 (none) up to the setting, as further action dimensions.",
    )

    # -- costs ------------------------------------------------------------------------------------------------------

    fee: float = Field(0.0005, ge=0, lt=1, description="Fee of a fill, as a fraction of its notional.")
    fee_fixed: float = Field(0.0, ge=0, allow_inf_nan=False, description="Fee of a fill, as an amount of money.")
    slippage: float = Field(
        0.0002, ge=0, lt=1, description="Distance of the fill price from the reference, to our loss, as a fraction."
    )
    half_spread: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="The same as an amount of money per unit: half the bid-ask spread."
    )
    impact: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="The same as a fraction: impact x square root of (quantity / the bar's volume).",
    )
    borrow: float = Field(
        0.0, ge=0, lt=1, description="Cost of a short position per bar, as a fraction of its notional at the close."
    )
    interest: float = Field(
        0.0, ge=0, lt=1, description="Interest on cash per bar, as a fraction; paid where cash is below 0."
    )

    # -- margin -----------------------------------------------------------------------------------------------------

    leverage: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="Gross notional over equity that an order may reach (1 / margin)."
    )
    maintenance_margin: float = Field(
        0.0, ge=0, lt=1, description="Equity over gross notional at which the account is liquidated; 0: bankrupt."
    )

    # -- observations -----------------------------------------------------------------------------------------------

    window: int = Field(32, ge=1, description="Bars in an observation.")
    features: tuple[str, ...] = Field(
        ("log_open", "log_high", "log_low", "log_close", "log_volume"),
        min_length=1,
        description="Features of a bar: names with arguments such as 'rsi(14)', of coarser bars such as"
        " '1h:log_close', or a function of yours as 'package.module:function'.",
    )
    position_features: tuple[PositionFeature, ...] = Field(
        ("position", "unrealised_return", "time_in_position", "drawdown", "cash_share"),
        description="What an observation says of the account, in this order.",
    )

    # -- rewards and metrics ----------------------------------------------------------------------------------------

    reward: str = Field(
        "log_return",
        description="'log_return', 'return', 'pnl', 'differential_sharpe', 'drawdown', or 'package.module:function'.",
    )
    reward_scale: float = Field(
        1.0, gt=0, allow_inf_nan=False, description="Factor on the reward that the learner sees; records stay unscaled."
    )
    reward_decay: float = Field(
        0.01, gt=0, lt=1, description="Adaptation rate (eta) of 'differential_sharpe', per bar."
    )
    drawdown_penalty: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="Weight of the rise in drawdown in the reward 'drawdown'."
    )
    bars_per_year: float | None = Field(
        None, gt=0, description="Bars in a year, for annual figures; none: taken from the times of the bars."
    )

    # -- record -----------------------------------------------------------------------------------------------------

    record: Literal["fills", "steps"] = Field(
        "steps", description="What an episode's record holds: fills and trades, or every step as well."
    )

    @field_validator("targets")
    @classmethod
    def _targets_are_distinct_numbers(cls, targets: tuple[float, ...]) -> tuple[float, ...]:
        if any(target - target != 0 for target in targets):
            raise ValueError("every target must be a finite number")
        if len(set(targets)) != len(targets):
            raise ValueError("targets must differ from each other")
        return targets

    @field_validator("position_features", "features")
    @classmethod
    def _names_are_distinct(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError("names must differ from each other")
        return names

    @model_validator(mode="after")
    def _settings_agree(self) -> Self:
        if self.discrete and max(abs(target) for target in self.targets) > self.leverage:
            raise ValueError(f"targets {self.targets} go beyond leverage {self.leverage}; raise leverage")
        if self.maintenance_margin * self.leverage >= 1:
            raise ValueError(
                f"maintenance_margin {self.maintenance_margin} leaves no room at leverage {self.leverage}:"
                " their product must be below 1"
            )
        if self.protect_by_action and self.discrete:
            raise ValueError("protect_by_action needs actions 'weights' or 'quantities'")
        if self.protect_by_action and not self.protections:
            raise ValueError("protect_by_action needs stop_loss, take_profit or trailing_stop as the largest distance")
        return self

    @property
    def discrete(self) -> bool:
        """Whether an action is a choice among numbered ones."""
        return self.actions in ("targets", "hold_buy_sell")

    @property
    def protections(self) -> tuple[str, ...]:
        """Names of the protective orders that are set, in the order of the action dimensions."""
        return tuple(name for name in ("stop_loss", "take_profit", "trailing_stop") if getattr(self, name) is not None)

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
    if not item["loc"]:
        return f"settings: {item['msg'].removeprefix('Value error, ')}"
    name = str(item["loc"][0])
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, model.model_fields, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known settings: {', '.join(model.model_fields)}"
        return f"unknown setting {name!r}; {hint}"
    return f"setting {name!r}: {item['msg']}, got {item['input']!r}"
