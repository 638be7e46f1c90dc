"""The features that come with Millrace: vectorised functions of one symbol's bars."""

from __future__ import annotations

import numpy as np

from env.bars import Bars, Floats
from env.declaration import feature


def _previous_close(bars: Bars) -> Floats:
    return np.concatenate([bars.close[:1], bars.close[:-1]])


@feature(lookback=1)
def log_open(bars: Bars) -> Floats:
    """Log of the open over the previous close."""
    return np.log(bars.open / _previous_close(bars))


@feature(lookback=1)
def log_high(bars: Bars) -> Floats:
    """Log of the high over the previous close."""
    return np.log(bars.high / _previous_close(bars))


@feature(lookback=1)
def log_low(bars: Bars) -> Floats:
    """Log of the low over the previous close."""
    return np.log(bars.low / _previous_close(bars))


@feature(lookback=1)
def log_close(bars: Bars) -> Floats:
    """Log of the close over the previous close."""
    return np.log(bars.close / _previous_close(bars))


@feature(lookback=1)
def log_volume(bars: Bars) -> Floats:
    """Log of the volume over that of the last bar before it with any; 0 where there is no volume, or none before."""
    out = np.zeros(len(bars))
    at = np.flatnonzero(bars.volume > 0)
    traded = bars.volume[at]
    out[at[1:]] = np.log(traded[1:] / traded[:-1])
    return out
