"""Baselines on the test split: what simple policies would have made, under the same costs as the agent."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from env.market_data import MarketData
from env.market_model import MarketModel
from env.policies import baselines, play
from env.settings import EnvSettings
from schemas.ids import PublisherId
from schemas.payloads import Payload, Written
from schemas.times import wall_now
from trainer.environments import ENV_ID
from trainer.episode_events import Beginning, EpisodeFacts, Lineage, recorded, started

_NO_POLICY = np.zeros(0, dtype=np.int64)


def run_baselines(
    data: MarketData, settings: EnvSettings, lineage: Lineage, publisher: PublisherId, iteration: int, seed: int
) -> Iterator[list[Payload | Written]]:
    """Trade the whole test window with each baseline, one episode a symbol, or one of the portfolio.

    Args:
        data: The test window.
        settings: Of the agent's test: the same costs, and starts at the beginning of the data.
        lineage: Of the window.
        publisher: Whose episodes they are.
        iteration: Iteration of the agent that they stand beside.
        seed: Of the random one.

    Yields:
        The events of one episode: its start, its end, its trades and fills.
    """
    rng = np.random.default_rng([seed, 2])
    model = MarketModel(data, settings, None, None, [rng])
    symbols = (None,) if settings.portfolio else data.symbols
    for env_index, (name, policy) in enumerate(baselines(settings, rng).items()):
        for number, symbol in enumerate(symbols):
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
            record = play(model, policy, symbol)
            beginning = Beginning(record.symbol, record.start_row, record.initial_value)
            yield [
                started(facts, iteration, beginning, lineage),
                *recorded(facts, iteration, wall_now(), _NO_POLICY, record, lineage, record_steps=False),
            ]
