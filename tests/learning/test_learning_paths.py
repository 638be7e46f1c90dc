"""The fast path learns, and learns what RLlib's own path does: in this process, on generated markets.

Shares are of ``Market.optimum`` over 300 bars of each symbol that were never learned, after costs.
"""

from __future__ import annotations

import numpy as np
import pytest
import ray
from lookahead_feature import next_return
from markets import persistent, random_walk
from paths import TEST, ground, learned

from env.lookahead import check_feature
from millrace.settings import load_settings
from trainer.ray_session import start_ray
from trainer.threads import computing_on

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

SEED = 2
# Steps after which a policy is near what can be reached; the fast path takes a few seconds for them.
BUDGET = {"DQN": 40_000, "PPO": 100_000}
# Steps after which stock and fast path are compared: in the steep part of learning, where a difference shows.
COMPARED = {"A2C": 16_384, "DQN": 4_096, "PPO": 16_384, "SAC": 8_192}
SEEDS = 5
# Two-sided 95 % of Student's t with SEEDS - 1 degrees of freedom.
STUDENT = 2.776
TABLES = {"reporting": {"min_sample_timesteps_per_iteration": 4_096}}


def luck(market):
    """Standard deviation of what holding any position over all bars of the test makes, in log returns."""
    return market.noise * (len(market.feed.bars) * TEST) ** 0.5


@pytest.fixture(scope="module")
def settings():
    return load_settings().env


@pytest.fixture(scope="module", autouse=True)
def local_ray():
    owned = start_ray(2, 128)
    with computing_on(1):
        yield
    if owned:
        ray.shutdown()


@pytest.mark.parametrize("name", ["DQN", "PPO"])
def test_the_fast_path_reaches_nine_tenths_of_the_optimum(name, settings):
    with ground(persistent(SEED), settings, f"optimum-{name}") as market:
        _, share = learned(market, name, BUDGET[name], SEED, fast=True, tables=TABLES)
    print(name, share)
    assert 0.9 <= share <= 1.0


@pytest.mark.parametrize("name", ["DQN", "PPO"])
def test_the_fast_path_is_not_above_flat_on_a_random_walk(name, settings):
    walk = random_walk(SEED)
    with ground(walk, settings, f"walk-{name}") as market:
        _, log_return = learned(market, name, COMPARED[name], SEED, fast=True, tables=TABLES)
    print(name, log_return)
    assert log_return <= 2.0 * luck(walk)


def test_a_feature_that_looks_ahead_is_caught_and_forced_through_has_an_impossible_score(settings):
    assert any(problem.kind == "look-ahead" for problem in check_feature(next_return).problems)
    seeing = settings.model_copy(update={"features": (*settings.features, "lookahead_feature:next_return")})
    walk = random_walk(SEED)
    with ground(walk, seeing, "lookahead") as market:
        _, log_return = learned(market, "PPO", BUDGET["PPO"], SEED, fast=True, tables=TABLES)
    print(log_return)
    # Where without it there is nothing to be had but luck.
    assert log_return > 10.0 * luck(walk)


@pytest.mark.parametrize(
    ("name", "actions"),
    [("A2C", "targets"), ("DQN", "targets"), ("PPO", "targets"), ("SAC", "targets"), ("SAC", "weights")],
)
def test_the_fast_path_learns_as_stock_does(name, actions, settings):
    # RLlib's runner knows of steps once an iteration, so that a schedule of exploration lags behind there: without one
    # both explore alike.
    tables = TABLES | ({"training": {"epsilon": 0.1}} if name == "DQN" else {})
    settings = settings.model_copy(update={"actions": actions})
    with ground(persistent(SEED), settings, f"parity-{name}-{actions}") as market:
        stock, fast = (
            np.array([learned(market, name, COMPARED[name], seed, fast=fast, tables=tables) for seed in range(SEEDS)])
            for fast in (False, True)
        )
    print(name, actions, stock, fast)
    # Of the mean return in training and of the share of the optimum: where the mean of as many further runs of stock
    # would lie.
    around = STUDENT * np.std(stock, axis=0, ddof=1) * (2 / SEEDS) ** 0.5
    assert (np.abs(fast.mean(axis=0) - stock.mean(axis=0)) <= around).all()
