"""Generated markets, one of them with a direction to find, and the best that can be made of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from producers.feed import Bars, Feed
from schemas.times import DAY, from_iso

SYMBOLS = ("A", "B", "C", "D")
BARS = 1_500
FIRST = from_iso("2000-01-01T00:00:00Z")

MOVE = 0.005
"""Log return of a bar in the hidden direction."""
NOISE = 0.003
"""Standard deviation of the log return around it."""
FLIP = 1 / 60
"""Probability that the direction turns from one bar to the next: it lasts 60 bars in the mean."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Market:
    """Bars of some symbols, and what moved them.

    Attributes:
        feed: The bars.
        directions: Symbol to the hidden direction of each bar, +1 or -1, float64 (BARS,); empty where there is none.
    """

    feed: Feed
    directions: Mapping[str, Floats]

    def optimum(self, first_ts: int, last_ts: int, rate: float) -> float:
        """Log return of the player who knows each bar's direction beforehand and holds it, all in, after costs.

        It is the most that can be expected: what a turn costs (two fills, 2 * rate) is less than what the next bar is
        expected to lose on the wrong side (2 * MOVE), and the noise cannot be known. An agent sees a turn only after
        it has shown in the bars, so it cannot reach all of this.

        Args:
            first_ts: ``ts_close`` (UTC µs) of the bar before the first one held.
            last_ts: ``ts_close`` of the last one.
            rate: Costs of a fill, fee and slippage, as a fraction of its notional.
        """
        assert rate < MOVE
        total = 0.0
        for symbol, direction in self.directions.items():
            bars = self.feed.bars[symbol]
            row, last = (int(np.searchsorted(bars.ts_close, ts)) for ts in (first_ts, last_ts))
            turns = row + 1 + np.flatnonzero(np.diff(direction[row + 1 : last + 1]))
            stretches = np.diff(np.log(bars.close[[row, *turns, last]]))
            for start, stretch in zip((row, *turns), stretches, strict=True):
                # The units held do not change within a stretch: those of a short are worth 2 - price ratio.
                growth = np.exp(stretch) if direction[start + 1] > 0 else 2.0 - np.exp(stretch)
                total += float(np.log(growth)) - (rate if start == row else 2 * rate)
        return total

    @property
    def noise(self) -> float:
        """Standard deviation of the log return of a bar."""
        return float(np.std([np.log(bars.close / bars.open) for bars in self.feed.bars.values()]))


def persistent(seed: int) -> Market:
    """A direction that lasts: the log return of a bar is MOVE times its direction, and noise.

    Symbols come in pairs of opposite directions, so that holding all of them is worth nothing.
    """
    returns, directions = {}, {}
    turned = np.empty(0)
    for number, (symbol, rng) in enumerate(_streams(seed, 0)):
        turned = -turned if number % 2 else np.cumprod(np.where(rng.random(BARS) < FLIP, -1.0, 1.0))
        directions[symbol] = turned
        returns[symbol] = MOVE * turned + NOISE * rng.standard_normal(BARS)
    return _market(seed, returns, directions)


def shuffled(seed: int) -> Market:
    """The bars of ``persistent(seed)``, those of each symbol in a random order: the past says nothing of the future."""
    origin = persistent(seed)
    returns, directions = {}, {}
    for symbol, rng in _streams(seed, 1):
        bars, order = origin.feed.bars[symbol], rng.permutation(BARS)
        returns[symbol] = np.log(bars.close / bars.open)[order]
        directions[symbol] = origin.directions[symbol][order]
    return _market(seed, returns, directions)


def random_walk(seed: int) -> Market:
    """Independent log returns of mean 0, with the variance of those of ``persistent``."""
    returns = {symbol: np.hypot(MOVE, NOISE) * rng.standard_normal(BARS) for symbol, rng in _streams(seed, 2)}
    return _market(seed, returns, {})


def _streams(seed: int, market: int) -> Iterator[tuple[str, np.random.Generator]]:
    for number, symbol in enumerate(SYMBOLS):
        yield symbol, np.random.default_rng([seed, market, number])


def _market(seed: int, returns: Mapping[str, Floats], directions: Mapping[str, Floats]) -> Market:
    bars = {symbol: _bars(symbol, values) for symbol, values in returns.items()}
    return Market(Feed(Path("generated"), f"generated from seed {seed}", True, bars), directions)


def _bars(symbol: str, returns: Floats) -> Bars:
    """Daily bars without gaps: each opens at the last close, so its whole return lies between its open and close."""
    close = 100.0 * np.exp(np.cumsum(returns))
    opening = np.concatenate([[100.0], close[:-1]])
    ts_open = FIRST + DAY * np.arange(BARS, dtype=np.int64)
    high, low = np.maximum(opening, close), np.minimum(opening, close)
    return Bars(symbol, "1d", True, ts_open, ts_open + DAY, opening, high, low, close, np.ones(BARS))
