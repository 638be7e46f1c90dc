"""Features as a user would write them, sound ones and ones that look ahead."""

from __future__ import annotations

import numpy as np
import pandas as pd

from env.bars import Bars
from env.declaration import feature

HOUR = 3_600_000_000


@feature(lookback=1)
def gap(bars: Bars) -> np.ndarray:
    return np.log(bars.open / np.concatenate([bars.close[:1], bars.close[:-1]]))


@feature(lookback=lambda n, scale: n - 1)
def range_mean(bars: Bars, n: int, scale: float = 1.0) -> np.ndarray:
    return scale * ((pd.Series(bars.high - bars.low).rolling(n).mean()) / bars.close).to_numpy()


@feature(lookback=200, scaled=False)
def recursive(bars: Bars) -> np.ndarray:
    close = pd.Series(bars.close)
    return (close / close.ewm(span=20, adjust=False).mean() - 1.0).to_numpy()


@feature(lookback=20)
def too_short(bars: Bars) -> np.ndarray:
    return recursive(bars)


@feature(lookback=3)
def centred_mean(bars: Bars) -> np.ndarray:
    return (pd.Series(bars.close).rolling(7, center=True, min_periods=1).mean() / bars.close - 1.0).to_numpy()


@feature(lookback=10)
def of_the_whole_series(bars: Bars) -> np.ndarray:
    return (bars.close - bars.close.mean()) / bars.close.std()


@feature(lookback=0)
def next_close(bars: Bars) -> np.ndarray:
    return np.log(np.concatenate([bars.close[1:], bars.close[-1:]]) / bars.close)


@feature(lookback=0)
def next_volume_where_a_bar_is_missing(bars: Bars) -> np.ndarray:
    later = np.concatenate([bars.volume[1:], [0.0]])
    return np.where(bars.tradable, 0.0, np.log1p(later))


def _hourly(bars: Bars, known_from: str) -> np.ndarray:
    index = pd.to_datetime(bars.ts_open, unit="us")
    hourly = pd.Series(bars.close, index=index).groupby(index.floor("h")).last()
    times = hourly.index.as_unit("us").asi8 + (HOUR if known_from == "close" else 0)
    at = np.searchsorted(times, bars.ts_close, side="right") - 1
    return np.where(at >= 0, bars.close / hourly.to_numpy()[np.maximum(at, 0)] - 1.0, 0.0)


@feature(lookback=180)
def hour_by_close(bars: Bars) -> np.ndarray:
    return _hourly(bars, "close")


@feature(lookback=180)
def hour_by_open(bars: Bars) -> np.ndarray:
    """Joins hourly bars at the time at which they open: the close of the hour is seen from its first minute on."""
    return _hourly(bars, "open")


@feature(lookback=5)
def not_finite(bars: Bars) -> np.ndarray:
    return np.where(bars.volume > np.quantile(bars.volume[:50], 0.9), np.nan, 1.0)


@feature(lookback=0)
def too_few(bars: Bars) -> np.ndarray:
    return bars.close[1:]


@feature(lookback=0)
def words(bars: Bars) -> np.ndarray:
    return np.array(["up"] * len(bars))


_CALLS = [0]


@feature(lookback=0)
def unsteady(bars: Bars) -> np.ndarray:
    _CALLS[0] += 1
    return np.full(len(bars), float(_CALLS[0]))


def undeclared(bars: Bars) -> np.ndarray:
    return bars.close


@feature(lookback=-1)
def negative(bars: Bars) -> np.ndarray:
    return bars.close


@feature(lookback=0)
def writes(bars: Bars) -> np.ndarray:
    bars.close[0] = 1.0
    return bars.close
