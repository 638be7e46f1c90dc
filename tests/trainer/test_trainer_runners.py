"""Several remote runners: each publishes its own episodes, and a seed gives the same ones again."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.ids import PublisherId


def train_spread(bench: Any, name: str, seed: int) -> Any:
    """Two remote runners with two environments each; with rewards scaled for the learner."""
    bench.send_walks("AAA", "BBB")
    train = {"record_steps": True, "iterations": 4, "seed": seed}
    return bench.train(bench.job(name, runners=2, env={"reward_scale": 100.0}, train=train))


def episodes(run: Any) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """What each of the agent's episodes was, by its place."""
    return {
        (one.role, one.worker_index, one.env_index, one.episode_no): (
            one.iteration,
            one.symbol,
            one.start_row,
            one.env_seed,
            one.steps,
            one.total_reward,
            one.first_policy_version,
        )
        for one in (*run.agent(), *run.agent("test"))
    }


@pytest.fixture(scope="module")
def spread_run(new_bench: Callable[[], Any], ray_session: None) -> Any:
    return train_spread(new_bench(), "DQN", seed=7)


def test_each_runner_publishes_its_own_episodes(spread_run: Any) -> None:
    assert set(spread_run.publishers()) == {"d0.0", "r1.0", "r2.0", "v0.0"}
    for event in spread_run.events:
        if event.event_type in ("episode.started", "episode.ended") and event.data.policy == "agent":
            publisher = PublisherId.parse(event.publisher_id)
            facts = event.data
            assert facts.episode_id == publisher.episode(facts.env_index, facts.episode_no)
            assert (facts.role, facts.worker_index) == (publisher.role.value, publisher.worker_index)


def test_as_many_episodes_are_published_as_rllib_counts(spread_run: Any) -> None:
    iterations = spread_run.of("iteration.ended")
    ended = Counter(episode.iteration for episode in spread_run.agent())
    assert dict(ended) == {one.iteration: one.episodes for one in iterations if one.episodes}
    assert sum(ended.values()) > 8
    started = spread_run.of("episode.started", split="train")
    steps = sum(one.env_steps for one in iterations)
    finished = sum(episode.steps for episode in spread_run.agent())
    assert 0 <= steps - finished <= 4 * 40
    assert 0 <= len(started) - sum(ended.values()) <= 4


def test_the_books_of_every_published_episode_close(spread_run: Any) -> None:
    for episode in spread_run.agent():
        steps = spread_run.of("steps", episode_id=episode.episode_id)
        net = [pnl for trades in spread_run.of("trades", episode_id=episode.episode_id) for pnl in trades.net_pnl]
        rewards = [reward for part in steps for reward in part.reward]
        assert len(rewards) == episode.steps == sum(episode.action_counts.values())
        assert sum(rewards) == pytest.approx(episode.total_reward)
        assert episode.total_reward == pytest.approx(np.log(episode.final_value / episode.initial_value))
        assert sum(net) + episode.open_pnl == pytest.approx(episode.pnl)
        assert len(net) == episode.trade_count


def test_returns_are_told_unscaled(spread_run: Any) -> None:
    told = [one for one in spread_run.of("iteration.ended") if one.episodes]
    assert told
    for iteration in told:
        returns = [one.total_reward for one in spread_run.agent() if one.iteration == iteration.iteration]
        assert iteration.episode_return_mean == pytest.approx(np.mean(returns), rel=1e-4)


# --- seeds ------------------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_episodes(spread_run: Any, new_bench: Callable[[], Any]) -> None:
    assert episodes(train_spread(new_bench(), "DQN", seed=7)) == episodes(spread_run)


@pytest.mark.slow
def test_another_seed_gives_other_episodes(spread_run: Any, new_bench: Callable[[], Any]) -> None:
    assert episodes(train_spread(new_bench(), "DQN", seed=8)) != episodes(spread_run)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_episodes_of_ppo(new_bench: Callable[[], Any], ray_session: None) -> None:
    one, other = (train_spread(new_bench(), "PPO", seed=7) for _ in range(2))
    assert episodes(one) == episodes(other)


# Run in a process of its own: the Ray of this one is shared by all other tests.
TWICE = """
import sys
from pathlib import Path
import ray
sys.path.insert(0, str(Path("tests/trainer").absolute()))
from conftest import Bench
for name in ("first", "second"):
    bench = Bench(Path(sys.argv[1]) / name)
    bench.send_walks("AAA")
    run = bench.train(bench.job("PPO", train={"iterations": 1}))
    assert run.result.status == "completed" and run.agent("test"), run.result
    bench.close()
    assert not ray.is_initialized()
"""


@pytest.mark.slow
def test_a_process_can_train_again_after_ray_was_shut_down(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", TWICE, str(tmp_path)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
