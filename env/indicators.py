"""The features that come with Millrace: vectorised functions of one symbol's bars.

Each depends on no bar before its look-back, not even in the last bit: exponential averages take in a finite window
(``env.rolling``). So a value is the same in whatever window of bars it is computed. A missing bar counts as one at the
last price with no volume.
"""

from __future__ import annotations

import numpy as np

from env.bars import Bars, Floats
from env.declaration import feature
from env.rolling import exponential_length, exponential_mean, sliding_mean, sliding_moments
from schemas.times import DAY

# -- the bar over the one before ------------------------------------------------------------------------------------


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


def _whole(n: int, least: int = 1) -> int:
    if n < least:
        raise ValueError(f"a length of {least} or more bars")
    return n


def _smoothing(span: int) -> float:
    """Weight of the newest bar in an exponential moving average of ``span`` bars."""
    return 2.0 / (_whole(span) + 1.0)


def _smoothing_bars(n: int) -> int:
    return exponential_length(_smoothing(n)) - 1


def _wilder_bars(n: int) -> int:
    """Look-back of Wilder's smoothing of changes from bar to bar."""
    return exponential_length(1.0 / _whole(n, 2))


def _two_or_more_back(n: int) -> int:
    return _whole(n, 2) - 1


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    """The quotient, and 0 where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator > 0.0)


# -- price ----------------------------------------------------------------------------------------------------------


@feature(lookback=_whole)
def log_return(bars: Bars, n: int = 1) -> Floats:
    """Log of the close over the close n bars before."""
    out = np.zeros(len(bars))
    out[n:] = np.log(bars.close[n:] / bars.close[:-n])
    return out


@feature(lookback=_two_or_more_back, scaled=False)
def zscore(bars: Bars, n: int = 20) -> Floats:
    """Close minus its mean over n bars, in their standard deviations (ddof 1); 0 where they are all equal."""
    mean, squares = sliding_moments(bars.close, n)
    return _ratio(bars.close - mean, np.sqrt(squares / (n - 1)))


@feature(lookback=_whole)
def volatility(bars: Bars, n: int = 20) -> Floats:
    """Realised volatility per bar: root of the mean squared log return over n bars, no mean taken off.

    Source: Andersen and Bollerslev, "Answering the Skeptics" (1998).
    """
    return np.sqrt(sliding_mean(log_close(bars) ** 2, n))


@feature(lookback=_two_or_more_back)
def sma_ratio(bars: Bars, n: int = 20) -> Floats:
    """Close over its mean of n bars, minus 1."""
    return bars.close / sliding_mean(bars.close, n) - 1.0


@feature(lookback=_smoothing_bars)
def ema_ratio(bars: Bars, n: int = 20) -> Floats:
    """Close over its exponential average with weight 2 / (n + 1) for the newest bar, minus 1."""
    return bars.close / exponential_mean(bars.close, _smoothing(n)) - 1.0


@feature(lookback=_wilder_bars, scaled=False)
def rsi(bars: Bars, n: int = 14) -> Floats:
    """Relative strength index from -1 to 1: (RSI - 50) / 50, which is (gains - losses) / (gains + losses).

    Gains and losses from close to close in Wilder's smoothing (weight 1 / n); 0 where there are none of both.
    Source: Wilder, "New Concepts in Technical Trading Systems" (1978).
    """
    change = bars.close - _previous_close(bars)
    gains = exponential_mean(np.maximum(change, 0.0), 1.0 / n)
    losses = exponential_mean(np.maximum(-change, 0.0), 1.0 / n)
    return _ratio(gains - losses, gains + losses)


def _macd_bars(fast: int, slow: int, signal: int) -> int:
    if not 1 <= fast < slow:
        raise ValueError("a fast length of 1 or more bars below the slow one")
    return _smoothing_bars(slow) + _smoothing_bars(signal)


@feature(lookback=_macd_bars)
def macd(bars: Bars, fast: int = 12, slow: int = 26, signal: int = 9) -> Floats:
    """MACD histogram over the close: EMA(fast) - EMA(slow), minus its own EMA(signal).

    Source: Appel, "Technical Analysis: Power Tools for Active Investors" (2005); the histogram is Aspray's (1986).
    """
    line = exponential_mean(bars.close, _smoothing(fast)) - exponential_mean(bars.close, _smoothing(slow))
    return (line - exponential_mean(line, _smoothing(signal))) / bars.close


def _bollinger_bars(n: int, k: float) -> int:
    if not 0.0 < k < np.inf:
        raise ValueError("a number of deviations above 0")
    return _two_or_more_back(n)


@feature(lookback=_bollinger_bars, scaled=False)
def bollinger(bars: Bars, n: int = 20, k: float = 2.0) -> Floats:
    """Position of the close in its Bollinger bands: -1 at the lower, 1 at the upper; 0 where the bands have no width.

    The bands are k standard deviations (ddof 0) around the mean of n closes.
    Source: Bollinger, "Bollinger on Bollinger Bands" (2001).
    """
    mean, squares = sliding_moments(bars.close, n)
    return _ratio(bars.close - mean, k * np.sqrt(squares / n))


@feature(lookback=_wilder_bars)
def atr(bars: Bars, n: int = 14) -> Floats:
    """Average true range over the close, in Wilder's smoothing (weight 1 / n).

    Source: Wilder, "New Concepts in Technical Trading Systems" (1978).
    """
    before = _previous_close(bars)
    true_range = np.maximum(bars.high, before) - np.minimum(bars.low, before)
    return exponential_mean(true_range, 1.0 / n) / bars.close


# -- volume ---------------------------------------------------------------------------------------------------------


@feature(lookback=_two_or_more_back, scaled=False)
def volume_zscore(bars: Bars, n: int = 20) -> Floats:
    """Volume minus its mean over n bars, in their standard deviations (ddof 1); 0 where they are all equal."""
    mean, squares = sliding_moments(bars.volume, n)
    return _ratio(bars.volume - mean, np.sqrt(squares / (n - 1)))


# -- calendar: the UTC time at which a bar opens --------------------------------------------------------------------


def _hour(bars: Bars) -> Floats:
    return np.asarray(bars.ts_open % DAY * (2.0 * np.pi / DAY))


def _weekday(bars: Bars) -> Floats:
    # 1970-01-01 was a Thursday; Monday is 0.
    return np.asarray((bars.ts_open // DAY + 3) % 7 * (2.0 * np.pi / 7.0))


@feature(lookback=0, scaled=False)
def hour_sin(bars: Bars) -> Floats:
    """Sine of the time of day: one turn in 24 hours, 0 at 00:00 UTC."""
    return np.sin(_hour(bars))


@feature(lookback=0, scaled=False)
def hour_cos(bars: Bars) -> Floats:
    """Cosine of the time of day."""
    return np.cos(_hour(bars))


@feature(lookback=0, scaled=False)
def weekday_sin(bars: Bars) -> Floats:
    """Sine of the day of the week: one turn in 7 days, 0 on Mondays (UTC)."""
    return np.sin(_weekday(bars))


@feature(lookback=0, scaled=False)
def weekday_cos(bars: Bars) -> Floats:
    """Cosine of the day of the week."""
    return np.cos(_weekday(bars))
