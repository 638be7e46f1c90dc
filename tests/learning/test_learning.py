"""It learns: DQN with our defaults, through the whole pipe, on generated markets whose optimum is known.

Bars are published to the log, windows are read from it, RLlib trains on them with two env runners, and what the agent
made of the test split is read out of ClickHouse, where the integrity of the run holds. Under the costs of the default
settings, 7 basis points a fill:

- where a direction lasts, the agent makes at least 80 % of the optimum (``Market.optimum``) on bars it has never seen;
- on the same bars in a random order of time it makes at most 10 % of it: there is nothing in the past to see, and an
  agent that did well there would see the future;
- on a random walk it makes nothing, but for luck.
"""

from __future__ import annotations

import pytest
from markets import persistent, random_walk, shuffled

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

# Of the 30 by default: the direction is found by then, and the controls have had the same chance.
RUN = "train.iterations=12"


def test_dqn_finds_a_lasting_direction(trained):
    outcome = trained(persistent, RUN)
    assert outcome.bars == 4 * 300
    assert outcome.log_return >= 0.8 * outcome.optimum


def test_dqn_finds_nothing_in_shuffled_bars(trained):
    outcome = trained(shuffled, RUN)
    assert outcome.log_return <= 0.1 * outcome.optimum


def test_dqn_is_not_above_flat_on_a_random_walk(trained):
    outcome = trained(random_walk, RUN)
    # Luck: one standard deviation of what holding any position over all these bars makes.
    assert outcome.log_return <= outcome.luck
