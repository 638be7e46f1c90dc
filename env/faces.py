"""What TradingEnv and TradingVectorEnv do alike: open what they are given, and render."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from env.episode_record import EpisodeRecord
from env.features import Recipe
from env.market_data import MarketData
from env.render import Fills, Picture, draw
from env.settings import EnvSettings
from schemas.errors import InputError, SettingsError

if TYPE_CHECKING:
    from pandas import DataFrame

RENDER_MODES = ("ansi", "rgb_array")


def opened(
    data: MarketData | DataFrame | Mapping[str, DataFrame],
    settings: EnvSettings | Mapping[str, Any] | None,
    symbol: str | None,
    render_mode: str | None,
) -> tuple[MarketData, EnvSettings]:
    """Check the arguments of an environment, and make bars of a DataFrame and settings of a mapping.

    Raises:
        InputError: Bad bars, symbol or render mode.
        SettingsError: A bad setting, or other features than those that the data were made with.
    """
    if not isinstance(settings, EnvSettings):
        settings = EnvSettings.from_mapping(settings or {})
    if isinstance(data, MarketData):
        bars = data
        if "features" in settings.model_fields_set and Recipe.of(settings.features).names != bars.feature_names:
            raise SettingsError(
                f"setting 'features': expected those of the data, {', '.join(bars.feature_names)}, got"
                f" {', '.join(settings.features)}; make the data with features=settings.features"
            )
    else:
        bars = MarketData.from_frame(data, features=settings.features)
    if symbol is not None:
        bars.number(symbol)  # raises for an unknown one
        if settings.portfolio:
            raise InputError(f"symbol: expected None in a portfolio, which trades all symbols, got {symbol!r}; omit it")
    if render_mode not in (None, *RENDER_MODES):
        raise InputError(
            f"render_mode: expected None, {' or '.join(map(repr, RENDER_MODES))}, got {render_mode!r}; choose one of"
            " these"
        )
    return bars, settings


def rendered(mode: str | None, data: MarketData, record: EpisodeRecord) -> str | Picture | None:
    """Show an episode, running or ended, in one of the render modes."""
    if mode is None:
        return None
    line = _line(record)
    return line if mode == "ansi" else _picture(line, data, record)


def _line(record: EpisodeRecord) -> str:
    row, value = record.start_row + record.steps, record.final_value
    held = f" position {record.open_quantity:+,.4f}" if record.open_quantity is not None else ""
    return f"{record.symbol} row {row}{held} equity {value:,.2f}"


def _picture(title: str, data: MarketData, record: EpisodeRecord) -> Picture:
    if record.symbol in data.symbols:
        number = data.number(record.symbol)
        first = record.start_row - int(data.base_rows[number] - data.offsets[number])
        prices = data.mark[first : first + record.steps + 1, np.newaxis]
    else:
        clock = data.on_common_clock()
        first = record.start_row - clock.base_row
        prices = clock.mark[:, first : first + record.steps + 1].T
    column = {symbol: number for number, symbol in enumerate(record.symbols)}
    fills = record.fills
    return draw(
        title,
        prices,
        record.equity,
        Fills(
            at=fills["row"] - record.start_row,
            symbol=np.array([column[symbol] for symbol in fills["symbol"].tolist()], dtype=np.int64),
            quantity=fills["quantity"],
            price=fills["price"],
        ),
    )
