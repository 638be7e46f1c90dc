"""Training without the pipe: a generated market's window in Ray, RLlib's config on it, and a greedy pass over the test.

What is left out are log, events and store, which say nothing about learning: so a seed costs seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from markets import Market
from ray.rllib.core.columns import Columns
from ray.rllib.utils.spaces.space_utils import unsquash_action

from env.bars import SymbolBars
from env.market_data import MarketData
from env.scaler import Scaler
from env.settings import EnvSettings
from env.vector_env import TradingVectorEnv
from trainer.algorithm import new_config
from trainer.environments import ENV_ID, register
from trainer.fast_path import use_fast_path
from trainer.settings import AlgorithmSettings, EnvConfig
from trainer.window_store import WindowStore
from trainer.windows import History, open_window

TEST = 300
"""Bars of each symbol that are kept for the test."""


@dataclass(frozen=True)
class Ground:
    """A market that is traded by a policy in training, and behind it the test's bars."""

    market: Market
    settings: EnvSettings
    test: MarketData
    scaler: Scaler
    store: WindowStore


@contextmanager
def ground(market: Market, settings: EnvSettings, name: str) -> Iterator[Ground]:
    """Open the windows of a market's bars before the test, and of the test. Ray must be running."""
    history = [
        SymbolBars(symbol, 0, b.ts_open, b.ts_close, b.open, b.high, b.low, b.close, b.volume)
        for symbol, b in market.feed.bars.items()
    ]
    facts = {"feed": name, "interval": "1d", "cluster_id": "none", "topic": "none", "topic_id": "none"}
    facts |= {"partitions": [0], "start_offsets": [0], "end_offsets": [1]}
    cut = int(history[0].ts_close[-TEST])
    train, test = (open_window(History(tuple(history), facts, {}), split, cut, settings) for split in ("train", "test"))
    register()
    store = WindowStore(name)
    try:
        store.put(train)
        yield Ground(market, settings, test.data, Scaler.fit(train.data), store)
    finally:
        store.close()


def learned(
    ground: Ground, name: str, steps: int, seed: int, *, fast: bool, tables: dict[str, Any]
) -> tuple[float, float]:
    """Train one algorithm in this process, by our defaults but for the tables.

    Returns:
        Mean return of the last training episodes, in log returns; and the sum of log returns over the test, greedily,
        as a share of the optimum (0 without one).
    """
    envs = 32
    environment = EnvConfig(
        window_store=ground.store.name,
        split="train",
        settings=ground.settings.model_dump(mode="json"),
        scaler=ground.scaler.to_dict(),
        seed=seed,
        num_envs=envs,
    )
    config = new_config(AlgorithmSettings(name=name, **tables))
    config.environment(ENV_ID, env_config=environment.model_dump(mode="json")).debugging(seed=seed)
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=envs)
    path = use_fast_path(config) if fast else None
    assert path is None or (path.no_batched is None and path.no_lean is None), path
    algorithm = config.build_algo()
    try:
        done, result = 0, {}
        while done < steps:
            result = algorithm.train()
            done += int(result["env_runners"]["num_env_steps_sampled"])
        mean = float(result["env_runners"]["episode_return_mean"]) / ground.settings.reward_scale
        return mean, tested(ground, algorithm.get_module())
    finally:
        algorithm.stop()


def tested(ground: Ground, module: Any) -> float:
    """Sum of log returns over the test, each symbol once with the most likely actions, over the optimum."""
    symbols = list(ground.test.symbols)
    settings = ground.settings.model_copy(update={"starts": "whole"})
    env = TradingVectorEnv(ground.test, settings, num_envs=len(symbols), scaler=ground.scaler)
    seen, _ = env.reset(options={"symbol": symbols})
    total, running = 0.0, np.ones(len(symbols), bool)
    first = int(ground.test.ts_close[env.model.row[0]])
    while running.any():
        with torch.no_grad():
            out = module.forward_inference({Columns.OBS: torch.from_numpy(seen)})
        if Columns.ACTIONS in out:
            chosen = out[Columns.ACTIONS].numpy()
        else:
            likely = module.get_inference_action_dist_cls().from_logits(out[Columns.ACTION_DIST_INPUTS])
            chosen = likely.to_deterministic().sample().numpy()
        if isinstance(env.single_action_space, gym.spaces.Box):
            chosen = unsquash_action(chosen, env.single_action_space)
        seen, rewards, terminated, truncated, _ = env.step(chosen)
        total += float(rewards[running].sum()) / settings.reward_scale
        running &= ~(terminated | truncated)
    last = int(ground.test.ts_close[ground.test.offsets[1] - 1])
    optimum = ground.market.optimum(first, last, settings.fee + settings.slippage)
    return total / optimum if optimum else total
