"""Baselines on the test split: what doing nothing, holding and gambling would have made, under the same costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from env.market_data import MarketData
from env.scaler import Scaler
from env.settings import EnvSettings
from env.trading_env import TradingEnv
from schemas.ids import PublisherId
from schemas.payloads import Payload
from schemas.times import wall_now
from trainer import episode_events
from trainer.environments import ENV_ID, Lineage
from trainer.episode_events import EpisodeFacts, Outcome

Choice = Callable[[np.random.Generator], int]


def policies(settings: EnvSettings) -> dict[str, Choice]:
    """Name to policy. Holding and staying flat exist where the targets allow them."""
    targets = settings.targets
    longest = int(np.argmax(targets))
    found: dict[str, Choice] = {}
    if targets[longest] > 0:
        found["buy_and_hold"] = lambda _: longest
    if 0.0 in targets:
        found["flat"] = lambda _: targets.index(0.0)
    found["random"] = lambda rng: int(rng.integers(len(targets)))
    return found


def run_baselines(
    data: MarketData,
    settings: EnvSettings,
    scaler: Scaler,
    lineage: Lineage,
    publisher: PublisherId,
    iteration: int,
    seed: int,
) -> Iterator[list[Payload]]:
    """Trade the whole test window with each baseline, one episode a symbol.

    Yields:
        The events of one episode: its start, its end, its trades and fills.
    """
    rng = np.random.default_rng([seed, 2])
    for env_index, (name, choose) in enumerate(policies(settings).items()):
        for number, symbol in enumerate(data.symbols):
            env = TradingEnv(data, settings, scaler=scaler, symbol=symbol)
            facts = EpisodeFacts(
                episode_id=publisher.episode(env_index, number),
                rllib_episode_id="",
                role=publisher.role.value,
                worker_index=publisher.worker_index,
                env_index=env_index,
                episode_no=number,
                env=ENV_ID,
                policy=name,
                split=lineage.split,
                started_at=wall_now(),
            )
            env.reset(seed=seed)
            begin = episode_events.started(facts, iteration, env.episode_record(), lineage)
            done = False
            while not done:
                _, _, terminated, truncated, _ = env.step(choose(rng))
                done = terminated or truncated
            record = env.episode_record()
            outcome = Outcome(record.steps, record.total_reward, [], (), record.terminated, record.truncated)
            end = episode_events.ended(facts, iteration, wall_now(), outcome, record, lineage, record_steps=False)
            yield [begin, *end]
