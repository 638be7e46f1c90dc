"""Vector environments of which every observation is known, for the tests of the batched runner."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from ray.tune.registry import register_env

from env.market_data import MarketData
from env.scaler import Scaler
from env.settings import EnvSettings
from trainer.environments import LineageVectorEnv, stream
from trainer.episode_events import Lineage

LINEAGE = Lineage("train", "w1", "hash", "settings", "scaler")


class Counting(gym.Env[Any, Any]):
    """Counts its steps: an observation is (episode, step), the reward the step, an episode ``length`` steps long."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, length: int, fails_at: int | None = None) -> None:
        self.length, self.fails_at = length, fails_at
        self.episode, self.count, self.total = -1, 0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.episode, self.count = self.episode + 1, 0
        return self._seen(), {"episode": self.episode}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.total += 1
        if self.total == self.fails_at:
            raise RuntimeError("broken on purpose")
        self.count += 1
        ended = self.count == self.length
        terminated = ended and self.episode % 2 == 0
        return self._seen(), float(self.count), terminated, ended and not terminated, {"count": self.count}

    def _seen(self) -> Any:
        return np.array([self.episode, self.count], np.float32)


def make_counting(mode: AutoresetMode, context: Any) -> SyncVectorEnv:
    """B counting environments; the i-th one's episodes are 3 + i steps long."""
    # Made again after a failure, they do not fail again.
    failures = context.get("failures")
    fails_at = failures.pop() if failures else None
    makers = [partial(Counting, 3 + index, fails_at if index == 0 else None) for index in range(context["num_envs"])]
    return SyncVectorEnv(makers, autoreset_mode=mode)


def make_market(data: MarketData, settings: EnvSettings, context: Any) -> LineageVectorEnv:
    """Our own environments on given bars, without a window store."""
    streams = [stream(7, index, "train") for index in range(context.num_envs)]
    return LineageVectorEnv(data, settings, scaler=Scaler.fit(data), lineage=LINEAGE, streams=streams)


def register_all(data: MarketData, settings: EnvSettings) -> None:
    """Register ``counting-NEXT_STEP`` and so on, and ``market``."""
    for mode in AutoresetMode:
        register_env(f"counting-{mode.name}", partial(make_counting, mode))
    register_env("market", partial(make_market, data, settings))
