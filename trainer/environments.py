"""TradingEnv as RLlib makes it: on the current window, with a stream of its own, and with its lineage at hand."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from ray.rllib.env.env_context import EnvContext
from ray.tune.registry import register_env

from env.market_data import MarketData
from env.scaler import Scaler
from env.settings import EnvSettings
from env.trading_env import TradingEnv
from schemas.payloads import Split
from trainer.settings import EnvConfig
from trainer.window_store import current_window

ENV_ID = "millrace/Trading-v0"

# Evaluation draws from a branch of its own, so that evaluating more or less often never changes the training.
_BRANCHES = {"train": (), "evaluation": (1,)}


@dataclass(frozen=True)
class Lineage:
    """Where the episodes of an environment come from. Fixed when it is made: an episode ends on its window."""

    split: Split
    window_id: str
    data_hash: str
    settings_hash: str
    scaler_version: str


class LineageTradingEnv(TradingEnv):
    """A TradingEnv that knows its lineage; ``EventCallbacks`` put it into the events.

    Args:
        data: Bars.
        settings: Of the market model.
        lineage: Where its episodes come from.
        turn: None draws the symbols; (k, n) takes every n-th symbol from the k-th on, so that the n environments of
            an evaluation trade each symbol once a round.
        options: As of TradingEnv.
    """

    def __init__(
        self,
        data: MarketData,
        settings: EnvSettings,
        *,
        lineage: Lineage,
        turn: tuple[int, int] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(data, settings, **options)
        self.lineage = lineage
        self._symbols = data.symbols
        self._next, self._stride = turn or (0, 0)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin a new episode, of the symbol whose turn it is where there are turns."""
        if self._stride:
            options = {"symbol": self._symbols[self._next % len(self._symbols)], **(options or {})}
            self._next += self._stride
        return super().reset(seed=seed, options=options)


def settings_hash(settings: EnvSettings) -> str:
    """Hash of the market model's settings: with the data hash, enough to run an episode again."""
    return hashlib.sha256(orjson.dumps(settings.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def stream(seed: int, index: int, branch: str) -> np.random.SeedSequence:
    """The random stream of an environment by its number over all runners: (worker index - 1) · B + environment index.

    RLlib seeds a runner with seed + worker index and gymnasium its i-th environment with that + i: 31 of 32 streams
    of two runners would be the same. The local runner, worker 0, counts as worker 1.
    """
    return np.random.SeedSequence([seed, index], spawn_key=_BRANCHES[branch])


def create_env(context: EnvContext) -> LineageTradingEnv:
    """Make one environment; RLlib calls it once per sub-environment.

    Raises:
        WindowError: the run's window is not open in this Ray session.
    """
    config = EnvConfig.model_validate(dict(context))
    opened, data = current_window(config.window_store, config.split)
    settings = EnvSettings.from_mapping(config.settings)
    scaler = Scaler.from_dict(config.scaler)
    # RLlib hands the same context to every sub-environment of a runner and leaves the count to us.
    env_index = context.vector_index
    context.vector_index = env_index + 1
    index = (max(context.worker_index, 1) - 1) * config.num_envs + env_index
    total = max(context.num_workers or 0, 1) * config.num_envs
    return LineageTradingEnv(
        data,
        settings,
        scaler=scaler,
        stream=stream(config.seed, index, config.branch),
        turn=(index, total) if config.branch == "evaluation" else None,
        lineage=Lineage(
            config.split, opened["window_id"], opened["data_hash"], settings_hash(settings), scaler.version
        ),
    )


def register() -> None:
    """Register the environment with RLlib under ``millrace/Trading-v0``."""
    register_env(ENV_ID, create_env)
