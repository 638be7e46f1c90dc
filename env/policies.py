"""Baselines: simple policies that trade any environment of ours, whatever its actions are.

A policy sees what is known at the close of a bar and says which share of equity it wants in each symbol. ``Trader``
turns that into an action of the environment's kind. Like a discrete target, a share is held once it was reached: it
drifts with the market until the policy wants another one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from env.episode_record import EpisodeRecord
from env.market_model import MarketModel
from env.settings import EnvSettings
from env.spaces import action_space

Floats = NDArray[np.float64]

# What a gap or a bar's volume leaves unfilled is not worth another order; what a missing bar cancelled is.
_REACHED = 0.9


class Seen(NamedTuple):
    """What is known at the close of a bar, of S symbols."""

    closes: Floats
    """Closing prices from the first one known up to this bar, float64 (S, bars); on a missing bar the last one."""
    position: Floats
    """Signed units held, float64 (S,)."""
    equity: float
    """Equity at this close."""


Policy = Callable[[Seen], Floats]
"""Returns the wanted shares of equity, float64 (S,): 0.5 is half of it long, -0.5 half of it short."""


def flat(seen: Seen) -> Floats:
    """Hold nothing."""
    return np.zeros(len(seen.closes))


def buy_and_hold(seen: Seen) -> Floats:
    """Buy at the start, all symbols alike, and never trade again."""
    return np.full(len(seen.closes), 1.0 / len(seen.closes))


def sma_cross(fast: int, slow: int) -> Policy:
    """Long where the mean of the last ``fast`` closes is above that of the last ``slow``, else short.

    The variable-length moving average rule of Brock, Lakonishok and LeBaron 1992, without a band. Flat before there
    are ``slow`` bars.
    """

    def policy(seen: Seen) -> Floats:
        if seen.closes.shape[1] < slow:
            return flat(seen)
        return _share(seen.closes[:, -fast:].mean(axis=1) - seen.closes[:, -slow:].mean(axis=1))

    return policy


def momentum(bars: int) -> Policy:
    """Long where the close is above that of ``bars`` bars ago, else short.

    Time series momentum of Moskowitz, Ooi and Pedersen 2012, without their scaling by volatility. Flat before there
    are as many bars.
    """

    def policy(seen: Seen) -> Floats:
        if seen.closes.shape[1] <= bars:
            return flat(seen)
        return _share(seen.closes[:, -1] - seen.closes[:, -1 - bars])

    return policy


def at_random(settings: EnvSettings, rng: np.random.Generator) -> Policy:
    """Want something else at every bar: a target drawn for each symbol, or any share of equity."""

    def policy(seen: Seen) -> Floats:
        count = len(seen.closes)
        if settings.discrete:
            return rng.choice(settings.targets, count)
        return rng.uniform(-1.0 if settings.short else 0.0, 1.0, count) / count

    return policy


def baselines(settings: EnvSettings, rng: np.random.Generator) -> dict[str, Policy]:
    """Name to policy: those that the actions of these settings can follow.

    Args:
        settings: Of the environment.
        rng: What the random one draws from.
    """
    known = {
        "flat": flat,
        "buy_and_hold": buy_and_hold,
        "sma_cross": sma_cross(10, 50),
        "momentum": momentum(20),
        "random": at_random(settings, rng),
    }
    if settings.discrete:
        if settings.actions == "targets" and 0.0 not in settings.targets:
            del known["flat"]
        if max(settings.targets) <= 0.0:
            del known["buy_and_hold"]
    return known


class Trader:
    """Turns the shares that a policy wants into actions of an environment, over one episode.

    - ``targets``: the nearest target of the same sign; where there is none, the one nearest to 0.
    - ``hold_buy_sell``: 1 for a share above 0, 2 below 0; at 0 the one of the two that is flat, or 0.
    - ``weights``: the share until it is reached, then what the position is worth, so that only the drift up to the
      next open is traded.
    - ``quantities``: the units to the share until it is reached, then 0.

    Distances of protective orders are 0: none.

    Args:
        settings: Of the environment.
        symbols: S, how many it trades.
    """

    def __init__(self, settings: EnvSettings, symbols: int) -> None:
        self._settings = settings
        self._space = action_space(settings, symbols)
        self._targets = np.array(settings.targets)
        self._wanted: Floats = np.full(symbols, np.nan)
        self._planned: Floats = np.zeros(symbols)
        self._reached = np.zeros(symbols, dtype=np.bool_)

    def action(self, wanted: Floats, seen: Seen) -> Any:
        """Return the action: an int for a discrete one of one symbol, int64 (S,) of several, else float32 (n,).

        Args:
            wanted: Shares of equity, float64 (S,).
            seen: What the policy saw.
        """
        settings = self._settings
        if settings.actions == "targets":
            return self._numbered([self._nearest(share) for share in wanted.tolist()])
        if settings.actions == "hold_buy_sell":
            return self._numbered([self._side(share) for share in wanted.tolist()])
        price = seen.closes[:, -1]
        self._follow(wanted, seen, price)
        if settings.actions == "weights":
            chosen = np.where(self._reached, seen.position * price / seen.equity, wanted)
        else:
            chosen = np.where(self._reached, 0.0, self._planned - seen.position)
        space: Any = self._space
        action = np.zeros(space.shape, dtype=np.float32)
        action.reshape(len(chosen), -1)[:, 0] = chosen
        return np.clip(action, space.low, space.high)

    def _numbered(self, choices: list[int]) -> Any:
        return np.array(choices, dtype=np.int64) if self._settings.portfolio else choices[0]

    def _nearest(self, share: float) -> int:
        distance = np.abs(self._targets - share)
        alike = np.sign(self._targets) == np.sign(share)
        return int(np.argmin(np.where(alike, distance, np.inf) if alike.any() else np.abs(self._targets)))

    def _side(self, share: float) -> int:
        if share != 0.0:
            return 1 if share > 0.0 else 2
        return {max(self._settings.targets): 1, min(self._settings.targets): 2}.get(0.0, 0)

    def _follow(self, wanted: Floats, seen: Seen, price: Floats) -> None:
        """Plan anew what is wanted anew, and note what has been reached."""
        changed = wanted != self._wanted
        self._wanted = wanted.copy()
        cost = 1.0 + self._settings.fee + self._settings.slippage + self._settings.half_spread / price
        self._planned = np.where(changed, wanted * seen.equity / (price * cost), self._planned)
        missing = np.abs(self._planned - seen.position)
        reached = np.where(self._planned == 0.0, missing == 0.0, missing <= (1.0 - _REACHED) * np.abs(self._planned))
        # Reached once is reached: what a protective order has closed is not entered again.
        self._reached = (self._reached & ~changed) | reached


def play(model: MarketModel, policy: Policy, symbol: str | None = None) -> EpisodeRecord:
    """Trade one episode to its end.

    Args:
        model: One environment (``num_envs=None``).
        policy: Decides.
        symbol: Symbol to trade; None as the settings say, or in a portfolio all.

    Returns:
        The record of the episode.
    """
    data, settings = model.data, model.settings
    model.reset([0], symbol)
    name, start_row = model.beginning(0)
    if settings.portfolio:
        clock = data.on_common_clock()
        closes, first, now = clock.mark, clock.first_valid, start_row - clock.base_row
    else:
        number = data.number(name)
        closes, first = data.bars(number).close[np.newaxis], int(data.first_valid[number])
        now = start_row - int(data.base_rows[number])
    trader = Trader(settings, len(closes))
    done = False
    while not done:
        seen = Seen(closes[:, first : now + 1], model.positions(0), model.value(0))
        _, _, terminated, truncated = model.step(trader.action(policy(seen), seen))
        done = bool(terminated or truncated)
        now += 1
    return model.episode_record(0, None)


def _share(difference: Floats) -> Floats:
    """Long where the difference is above 0, short where below, nothing at 0; all symbols alike."""
    return np.sign(difference) / len(difference)
