"""What the learner is paid for a step; docs/env.md has the formulas beside each other, ``env.kernel`` computes them."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from env import kernel
from env.loading import load_function
from env.settings import EnvSettings
from schemas.errors import InputError, SettingsError

REWARDS = {
    # Kelly, "A new interpretation of information rate", Bell System Technical Journal 35(4), 1956: the rewards of the
    # steps add up to the log growth of the episode.
    "log_return": kernel.LOG_RETURN,
    "return": kernel.RETURN,
    "pnl": kernel.PNL,
    # Moody and Saffell, "Learning to trade via direct reinforcement", IEEE Transactions on Neural Networks 12(4), 2001:
    # how much a return moves an exponentially weighted Sharpe ratio, over its rate of adaptation.
    "differential_sharpe": kernel.DIFFERENTIAL_SHARPE,
    # The drawdown of Chekhlov, Uryasev and Zabarankin, "Drawdown measure in portfolio optimization", International
    # Journal of Theoretical and Applied Finance 8(1), 2005, as a fraction of the peak: what a step adds to it is the
    # penalty.
    "drawdown": kernel.DRAWDOWN_PENALISED,
}
"""Names of the rewards, and their numbers in the compiled step."""


class RewardInput(NamedTuple):
    """What a step did, one number per environment: float64 (B,) unless said otherwise; B is 1 in ``TradingEnv``.

    Money is in the currency of the prices.
    """

    equity_before: NDArray[np.float64]
    """Equity at the last close, after its costs."""
    equity: NDArray[np.float64]
    """Equity at this close, after all costs of the step. At or below 0 when the account is ruined."""
    peak: NDArray[np.float64]
    """Highest equity of the episode at the closes before this one, the start included."""
    cash: NDArray[np.float64]
    """Money at this close."""
    position: NDArray[np.float64]
    """Signed units held at this close; (B, S) in a portfolio of S symbols."""
    price: NDArray[np.float64]
    """Close, or the last one known where the bar is missing; (B, S) in a portfolio."""
    row: NDArray[np.int64]
    """Absolute row of this bar, int64."""
    step: NDArray[np.int64]
    """Number of this step in its episode, from 0, int64."""


UserReward = Callable[[RewardInput], NDArray[np.float64]]


class OfUser:
    """A function of the user's, on arrays.

    Args:
        name: ``package.module:function``.

    Raises:
        SettingsError: There is no such module, or no such function in it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._function: UserReward = load_function(name, "reward")

    def __call__(self, given: RewardInput) -> NDArray[np.float64]:
        """Return what the function returns, checked: float64 (B,), finite.

        Raises:
            InputError: It returns another shape, or a number that is not finite.
        """
        rewards = np.asarray(self._function(given), dtype=np.float64)
        if rewards.shape != given.equity.shape:
            raise InputError(
                f"reward {self._name!r}: expected an array ({len(given.equity)},), one reward per environment, got"
                f" shape {rewards.shape}; compute it from the arrays that it is given"
            )
        finite = np.isfinite(rewards)
        if not finite.all():
            index = int(np.argmin(finite))
            raise InputError(
                f"reward {self._name!r}, environment {index}: expected a finite number, got {rewards[index]}; mind"
                " equity at or below 0 on the last step of a ruined account"
            )
        return rewards


def reward_of(settings: EnvSettings) -> tuple[int, OfUser | None]:
    """Return the number of the reward that ``settings.reward`` names, and the user's function where it is one.

    Raises:
        SettingsError: No reward has this name (the nearest is suggested), or no module this function.
    """
    name = settings.reward
    if ":" in name:
        return kernel.OF_USER, OfUser(name)
    if name not in REWARDS:
        near: Any = difflib.get_close_matches(name, REWARDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose {', '.join(REWARDS)} or 'package.module:function'"
        raise SettingsError(f"setting 'reward': unknown reward {name!r}; {hint}")
    return REWARDS[name], None
