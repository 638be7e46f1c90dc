"""Trading environments as RLlib makes them: on the current window, with streams of their own and their lineage."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from ray.rllib.env.env_context import EnvContext
from ray.tune.registry import register_env

from env.market_data import MarketData
from env.scaler import Scaler
from env.settings import EnvSettings
from env.trading_env import TradingEnv
from env.vector_env import TradingVectorEnv
from schemas.errors import SettingsError
from schemas.payloads import Split
from trainer.episode_events import Lineage
from trainer.places import places_of
from trainer.rllib_private import VectorContext
from trainer.rollout import IndexedObservations
from trainer.settings import EnvConfig
from trainer.window_store import current_window

ENV_ID = "millrace/Trading-v0"

# Evaluation draws from a branch of its own, so that evaluating more or less often never changes the training.
_BRANCHES = {"train": (), "evaluation": (1,)}


class LineageTradingEnv(TradingEnv):
    """A TradingEnv that knows its lineage; ``EventCallbacks`` put it into the events.

    Args:
        data: Bars.
        settings: Of the market model.
        lineage: Where its episodes come from.
        turn: None draws the symbols; (k, n) takes every n-th symbol from the k-th on, so that the n environments of
            an evaluation trade each symbol once a round. A portfolio has no turns: it trades all of them.
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
        self._next, self._stride = turn if turn and not settings.portfolio else (0, 0)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin a new episode, of the symbol whose turn it is where there are turns."""
        if self._stride:
            options = {"symbol": self._symbols[self._next % len(self._symbols)], **(options or {})}
            self._next += self._stride
        return super().reset(seed=seed, options=options)


class LineageVectorEnv(TradingVectorEnv):
    """B environments of one runner as arrays; each draws and trades as a ``LineageTradingEnv`` alone would.

    An environment that has ended waits, with its record, for ``reset(options={"reset_mask": mask})``: gymnasium's
    autoreset mode DISABLED. So no step is spent on a reset.

    Args:
        data: Bars.
        settings: Of the market model.
        lineage: Where its episodes come from.
        streams: Source of the random starts of each environment, B of them.
        turns: None draws the symbols; else for each environment its ``turn``, as of ``LineageTradingEnv``.
        options: As of TradingVectorEnv.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - gymnasium declares it so
        **TradingVectorEnv.metadata,
        "autoreset_mode": AutoresetMode.DISABLED,
    }

    def __init__(
        self,
        data: MarketData,
        settings: EnvSettings,
        *,
        lineage: Lineage,
        streams: Sequence[np.random.SeedSequence],
        turns: Sequence[tuple[int, int]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(data, settings, num_envs=len(streams), streams=streams, **options)
        self.lineage = lineage
        self._data, self._places = data, places_of(data, settings)
        self._turns = None if turns is None or settings.portfolio else np.array(turns).T

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin new episodes, of the symbols whose turn it is where there are turns."""
        if self._turns is not None:
            turn, stride = self._turns  # views: what is added to turn stays
            symbols = [self._data.symbols[number] for number in turn % len(self._data.symbols)]
            options = {"symbol": symbols, **(options or {})}
            turn += stride * options.get("reset_mask", 1)
        return super().reset(seed=seed, options=options)

    @property
    def account_size(self) -> int:
        """Numbers at the end of an observation that are the account's and not the market's."""
        return int(self.model.observation_size - self.settings.window * self._places.bars.features.shape[1])

    @property
    def rows(self) -> NDArray[np.int64]:
        """Where each environment is, as rows of its data's arrays, int64 (B,)."""
        rows: NDArray[np.int64] = self.model.row
        return rows

    def indexed(self, rows: NDArray[np.int64], accounts: NDArray[np.float32]) -> IndexedObservations:
        """Observations by their places.

        Args:
            rows: What ``rows`` was when they were seen, int64 (…).
            accounts: Their last ``account_size`` numbers, float32 (…, P).
        """
        places, symbols = self._places.of(rows)
        return IndexedObservations(self.lineage.window_id, self._places.names, places, symbols, accounts)


def settings_hash(settings: EnvSettings) -> str:
    """Hash of the market model's settings: with the data hash, enough to run an episode again."""
    return hashlib.sha256(orjson.dumps(settings.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]


def stream(seed: int, index: int, branch: str) -> np.random.SeedSequence:
    """The random stream of an environment by its number over all runners: (worker index - 1) · B + environment index.

    RLlib seeds a runner with seed + worker index and gymnasium its i-th environment with that + i: 31 of 32 streams
    of two runners would be the same. The local runner, worker 0, counts as worker 1.
    """
    return np.random.SeedSequence([seed, index], spawn_key=_BRANCHES[branch])


def create_env(context: EnvContext) -> LineageTradingEnv | LineageVectorEnv:
    """Make one environment, or all of a runner's where RLlib asks for a vector environment.

    Raises:
        SettingsError: RLlib's own runner asks for a vector environment, and does not say which worker it is.
        WindowError: the run's window is not open in this Ray session.
    """
    if not isinstance(context, EnvContext):
        raise SettingsError(
            "algorithm.env_runners.gym_env_vectorize_mode: RLlib's own runner makes vector environments without their "
            'worker\'s number; leave it out, or leave train.fast_path at "auto"'
        )
    config = EnvConfig.model_validate(dict(context))
    opened, data = current_window(config.window_store, config.split)
    settings = EnvSettings.from_mapping(config.settings)
    scaler = Scaler.from_dict(config.scaler)
    lineage = Lineage(config.split, opened["window_id"], opened["data_hash"], settings_hash(settings), scaler.version)
    first = (max(context.worker_index, 1) - 1) * config.num_envs
    total = max(context.num_workers or 0, 1) * config.num_envs
    evaluates = config.branch == "evaluation"
    if isinstance(context, VectorContext) and context.num_envs is not None:
        numbers = range(first, first + context.num_envs)
        return LineageVectorEnv(
            data,
            settings,
            scaler=scaler,
            lineage=lineage,
            streams=[stream(config.seed, number, config.branch) for number in numbers],
            turns=[(number, total) for number in numbers] if evaluates else None,
        )
    # RLlib hands the same context to every sub-environment of a runner and leaves the count to us.
    number = first + context.vector_index
    context.vector_index += 1
    return LineageTradingEnv(
        data,
        settings,
        scaler=scaler,
        lineage=lineage,
        stream=stream(config.seed, number, config.branch),
        turn=(number, total) if evaluates else None,
    )


def follow_window(env_runner: Any) -> None:
    """Make a runner's environments again if they are ours and not on the current window of their split."""
    if env_runner.env is None:
        return
    env = env_runner.env.unwrapped
    # RLlib's own runner has them one by one, all on the same window.
    lineage = getattr(env.envs[0].unwrapped if hasattr(env, "envs") else env, "lineage", None)
    if isinstance(lineage, Lineage):
        opened, _ = current_window(env_runner.config.env_config["window_store"], lineage.split)
        if opened["window_id"] != lineage.window_id:
            env_runner.make_env()


def trade_split(split: Split, env_runner: Any) -> None:
    """Make a runner's environments again, on the current window of another split."""
    if env_runner.env is not None:
        env_runner.config.env_config["split"] = split
        env_runner.make_env()


def register() -> None:
    """Register the environment with RLlib under ``millrace/Trading-v0``."""
    register_env(ENV_ID, create_env)
