"""What the learner is paid for a step; docs/env.md has the formulas beside each other."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from env.accounting import BATCH, ONE, RUIN_RATIO, Ops
from env.loading import load_function
from env.settings import EnvSettings
from schemas.errors import InputError, SettingsError

# A number per environment: float for one environment, an array (B,) for a batch.
Value = Any

_NO_VARIANCE = 1e-12


class RewardInput(NamedTuple):
    """What a step did, one number per environment: float64 (B,) unless said otherwise.

    A function of the user's always gets arrays; B is 1 in ``TradingEnv``. Money is in the currency of the prices.
    """

    equity_before: Value
    """Equity at the last close, after its costs."""
    equity: Value
    """Equity at this close, after all costs of the step. At or below 0 when the account is ruined."""
    peak: Value
    """Highest equity of the episode at the closes before this one, the start included."""
    cash: Value
    """Money at this close."""
    position: Value
    """Signed units held at this close; (B, S) in a portfolio of S symbols."""
    price: Value
    """Close, or the last one known where the bar is missing; (B, S) in a portfolio."""
    row: Value
    """Absolute row of this bar, int64."""
    step: Value
    """Number of this step in its episode, from 0, int64."""


UserReward = Callable[[RewardInput], NDArray[np.float64]]


class Reward:
    """Base of the rewards: called once a step for all environments.

    Args:
        settings: Of the environments.
        num_envs: B, or None for one environment on plain numbers.
    """

    def __init__(self, settings: EnvSettings, num_envs: int | None) -> None:
        self._batched = num_envs is not None
        self._ops: Ops = BATCH if self._batched else ONE

    def __call__(self, given: RewardInput) -> Value:
        """Return the unscaled reward of the step: a float, or float64 (B,). Always finite."""
        raise NotImplementedError

    def begin(self, indices: Sequence[int]) -> None:
        """Forget what was kept of the last episodes of the environments ``indices``."""

    def _growth(self, given: RewardInput) -> Value:
        """Return E′/E, no lower than what a ruined account has left."""
        return self._ops.maximum(given.equity / given.equity_before, RUIN_RATIO)


class LogReturn(Reward):
    """Log growth of equity; the rewards of the steps add up to that of the episode.

    Kelly, "A new interpretation of information rate", Bell System Technical Journal 35(4), 1956.
    """

    def __call__(self, given: RewardInput) -> Value:
        """ln(max(E′/E, RUIN_RATIO))."""
        return self._ops.log(self._growth(given))


class Return(Reward):
    """Simple return of equity."""

    def __call__(self, given: RewardInput) -> Value:
        """max(E′/E, 0) − 1."""
        return self._ops.maximum(given.equity / given.equity_before, 0.0) - 1.0


class Pnl(Reward):
    """Change of equity, in money."""

    def __call__(self, given: RewardInput) -> Value:
        """E′ − E."""
        return given.equity - given.equity_before


class DifferentialSharpe(Reward):
    """How much this return moves an exponentially weighted Sharpe ratio, over its rate of adaptation.

    Moody and Saffell, "Learning to trade via direct reinforcement", IEEE Transactions on Neural Networks 12(4), 2001:
    A and B are the moving averages of the return and its square.
    """

    def __init__(self, settings: EnvSettings, num_envs: int | None) -> None:
        super().__init__(settings, num_envs)
        self._decay = settings.reward_decay
        self._mean: Value = np.zeros(num_envs) if num_envs is not None else 0.0
        self._square: Value = np.zeros(num_envs) if num_envs is not None else 0.0

    def __call__(self, given: RewardInput) -> Value:
        """(B ΔA − A ΔB / 2) / (B − A²)^(3/2); 0 while there is no variance yet."""
        r = self._growth(given) - 1.0
        mean, square = self._mean, self._square
        to_mean, to_square = r - mean, r * r - square
        variance = square - mean * mean
        known = variance > _NO_VARIANCE
        divisor = self._ops.where(known, variance, 1.0)
        change = (square * to_mean - 0.5 * mean * to_square) / (divisor * np.sqrt(divisor))
        self._mean = mean + self._decay * to_mean
        self._square = square + self._decay * to_square
        return self._ops.where(known, change, 0.0) if self._batched else float(change if known else 0.0)

    def begin(self, indices: Sequence[int]) -> None:
        """Set A = B = 0."""
        if self._batched:
            self._mean[indices] = self._square[indices] = 0.0
        else:
            self._mean = self._square = 0.0


class Drawdown(Reward):
    """Log return less a penalty on what the step adds to the drawdown from the highest equity.

    The drawdown is that of Chekhlov, Uryasev and Zabarankin, "Drawdown measure in portfolio optimization",
    International Journal of Theoretical and Applied Finance 8(1), 2005, as a fraction of the peak.
    """

    def __init__(self, settings: EnvSettings, num_envs: int | None) -> None:
        super().__init__(settings, num_envs)
        self._penalty = settings.drawdown_penalty

    def __call__(self, given: RewardInput) -> Value:
        """Log return − penalty · max(0, D′ − D)."""
        ops = self._ops
        growth = self._growth(given)
        before = given.equity_before / given.peak
        after = growth * given.equity_before / ops.maximum(given.peak, given.equity)
        return ops.log(growth) - self._penalty * ops.maximum(before - after, 0.0)


class OfUser(Reward):
    """A function of the user's, on arrays."""

    def __init__(self, settings: EnvSettings, num_envs: int | None) -> None:
        super().__init__(settings, num_envs)
        self._name = settings.reward
        self._count = num_envs or 1
        self._function: UserReward = load_function(settings.reward, "reward")

    def __call__(self, given: RewardInput) -> Value:
        """What the function returns, checked."""
        if not self._batched:
            given = RewardInput(*(np.array([value]) for value in given))
        rewards = np.asarray(self._function(given), dtype=np.float64)
        if rewards.shape != (self._count,):
            raise InputError(
                f"reward {self._name!r}: expected an array ({self._count},), one reward per environment, got shape"
                f" {rewards.shape}; compute it from the arrays that it is given"
            )
        finite = np.isfinite(rewards)
        if not finite.all():
            index = int(np.argmin(finite))
            raise InputError(
                f"reward {self._name!r}, environment {index}: expected a finite number, got {rewards[index]}; mind"
                " equity at or below 0 on the last step of a ruined account"
            )
        return rewards if self._batched else float(rewards[0])


REWARDS: dict[str, type[Reward]] = {
    "log_return": LogReturn,
    "return": Return,
    "pnl": Pnl,
    "differential_sharpe": DifferentialSharpe,
    "drawdown": Drawdown,
}


def reward_function(settings: EnvSettings, num_envs: int | None = None) -> Reward:
    """Return the reward that ``settings.reward`` names.

    Args:
        settings: Of the environments.
        num_envs: B, or None for one environment on plain numbers.

    Raises:
        SettingsError: No reward has this name (the nearest is suggested), or no module this function.
    """
    name = settings.reward
    if ":" in name:
        return OfUser(settings, num_envs)
    if name not in REWARDS:
        near = difflib.get_close_matches(name, REWARDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose {', '.join(REWARDS)} or 'package.module:function'"
        raise SettingsError(f"setting 'reward': unknown reward {name!r}; {hint}")
    return REWARDS[name](settings, num_envs)
