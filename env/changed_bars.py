"""Random bars, and bars of which a part is changed at random: what features are checked on for look-ahead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from env.bars import PRICES, Floats, Ints, SymbolBars
from env.features import Feature
from schemas.times import MINUTE, from_iso

_FINE_BARS = 10  # in a coarse one
_SPARE_ROWS = 600
_SESSION, _NIGHT = 390, 1_050  # bars, as on a stock exchange with bars of one minute


def random_bars(feature: Feature, rng: np.random.Generator) -> SymbolBars:
    """Bars for a feature: enough for its look-back, in sessions with gaps, some missing, some without volume.

    They have one minute, or a tenth of the feature's own interval.
    """
    interval = MINUTE if feature.interval is None else feature.interval // _FINE_BARS
    lookback = feature.lookback(interval)
    count = 3 * lookback + _SPARE_ROWS
    rows = np.arange(count)
    ts_open = from_iso("2024-01-01") + (rows + rows // _SESSION * _NIGHT) * interval
    # Holes in bursts: between them there are complete bars for as long as the look-back.
    burst = rows % max(2 * lookback, 200) < 20
    missing, quiet = burst & (rng.random((2, count)) < 0.5)
    prices = {name: np.where(missing, np.nan, price) for name, price in _prices(count, 100.0, rng).items()}
    return SymbolBars(
        "RANDOM",
        0,
        ts_open,
        ts_open + interval,
        **prices,
        volume=np.where(quiet, 0.0, rng.lognormal(5.0, 1.0, count)),
        funding=np.where(rng.random(count) < 0.05, rng.normal(0.0, 1e-4, count), np.nan),
    )


def with_values(bars: SymbolBars, rows: slice, rng: np.random.Generator, missing: float = 0.05) -> SymbolBars:
    """Other prices, volumes and funding rates in some rows; a share of them missing, and as many without volume."""
    count = len(bars.close[rows])
    first = float(np.nanmedian(bars.close)) * float(rng.lognormal(0.0, 1.0))
    gone = rng.random(count) < missing
    new = {name: np.where(gone, np.nan, price) for name, price in _prices(count, first, rng).items()}
    new["volume"] = np.where(rng.random(count) < missing, rng.choice([0.0, np.nan]), rng.lognormal(5.0, 2.0, count))
    if bars.funding is not None:
        new["funding"] = rng.normal(0.0, 1e-3, count)
    columns = {name: getattr(bars, name).copy() for name in new}
    for name, values in new.items():
        columns[name][rows] = values
    return replace(bars, **columns)


# -- other futures after a row --------------------------------------------------------------------------------------


def _changed(bars: SymbolBars, row: int, rng: np.random.Generator) -> SymbolBars:
    return with_values(bars, slice(row + 1, None), rng)


def _missing(bars: SymbolBars, row: int, rng: np.random.Generator) -> SymbolBars:
    return with_values(bars, slice(row + 1, None), rng, missing=float(rng.choice([0.3, 1.0])))


def _cut_off(bars: SymbolBars, row: int, rng: np.random.Generator) -> SymbolBars:
    del rng
    return bars.cut(0, row + 1)


def _left_out(bars: SymbolBars, row: int, rng: np.random.Generator) -> SymbolBars:
    after = np.arange(row + 1, len(bars))[: rng.integers(0, len(bars) - row - 1)]
    return _with_rows(bars, np.concatenate([np.arange(row + 1), after[rng.random(len(after)) < 0.7]]))


def _more(bars: SymbolBars, row: int, rng: np.random.Generator) -> SymbolBars:
    further = np.arange(1, rng.integers(1, len(bars) + 1) + 1)
    rows = np.concatenate([np.arange(len(bars)), np.full(len(further), len(bars) - 1)])
    step = max(bars.interval, int(bars.ts_close[-1] - bars.ts_open[-1]))
    later = np.concatenate([np.zeros(len(bars), dtype=np.int64), further * step])
    longer = _with_rows(bars, rows, later)
    return _changed(longer, row, rng)


FUTURES: tuple[tuple[str, Callable[[SymbolBars, int, np.random.Generator], SymbolBars]], ...] = (
    ("changed", _changed),
    ("missing", _missing),
    ("cut off", _cut_off),
    ("left out in part", _left_out),
    ("changed and more of them", _more),
)
"""What may become of the bars after a row: a description, and a function of bars, row and generator."""


def _prices(count: int, first: float, rng: np.random.Generator) -> dict[str, Floats]:
    """A random walk of 2 % a bar."""
    close = first * np.exp(np.cumsum(rng.normal(0.0, 0.02, count)))
    opened = np.concatenate([[first], close[:-1]])[:count] * np.exp(rng.normal(0.0, 0.01, count))
    up, down = np.exp(np.abs(rng.normal(0.0, 0.01, (2, count))))
    return {
        "open": opened,
        "high": np.maximum(opened, close) * up,
        "low": np.minimum(opened, close) / down,
        "close": close,
    }


def _with_rows(bars: SymbolBars, rows: Ints, later: Ints | int = 0) -> SymbolBars:
    """These rows alone, at times that are ``later`` by so many µs."""
    names = (*PRICES, "volume", *(() if bars.funding is None else ("funding",)))
    columns = {name: getattr(bars, name)[rows] for name in names}
    return replace(bars, ts_open=bars.ts_open[rows] + later, ts_close=bars.ts_close[rows] + later, **columns)
