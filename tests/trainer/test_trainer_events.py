"""``EventCallbacks``: what is published is what happened, however episodes are cut, spread and decided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.callbacks.callbacks import RLlibCallback

from env.episode_record import EpisodeRecord
from trainer.callbacks import EventCallbacks, finish_run
from trainer.publish import publish_events

LONG = 972
POLICIES = ("agent", "flat", "buy_and_hold", "sma_cross", "momentum", "random")


@dataclass
class Seen:
    """What the spy saw of an ended episode."""

    rllib_id: str
    record: EpisodeRecord
    versions: list[int]
    iteration: int


class Ends(RLlibCallback):
    """Sees the same episodes by itself. With the runner in this process its class holds what it saw."""

    seen: ClassVar[list[Seen]] = []
    results: ClassVar[int] = 0

    @classmethod
    def clear(cls) -> None:
        Ends.seen, Ends.results = [], 0

    def __init__(self) -> None:
        super().__init__()
        self.versions: dict[int, list[int]] = {}

    def on_episode_start(self, *, env_index: int, **kwargs: Any) -> None:
        self.versions[env_index] = []

    def ended(self, episode: Any, record: EpisodeRecord, env_index: int) -> None:
        Ends.seen.append(Seen(str(episode.id_), record, self.versions.pop(env_index), Ends.results + 1))

    def on_train_result(self, **kwargs: Any) -> None:
        Ends.results += 1


class Spy(Ends):
    """Of RLlib's own runner: it counts each step, which the batched one does not tell."""

    def on_episode_step(self, *, env_runner: Any, env_index: int, **kwargs: Any) -> None:
        self.versions[env_index].append(int(env_runner._weights_seq_no))

    def on_episode_end(self, *, episode: Any, env: Any, env_index: int, **kwargs: Any) -> None:
        self.ended(episode, env.envs[env_index].unwrapped.episode_record(), env_index)


class BatchedSpy(Ends):
    """Of the batched runner: all steps of a sample() are decided by one version."""

    def _count(self, env: Any, env_index: int, env_runner: Any) -> EpisodeRecord:
        record: EpisodeRecord = env.episode_record(env_index)
        versions = self.versions[env_index]
        versions.extend([env_runner.weights_seq_no] * (record.steps - len(versions)))
        return record

    def on_episode_end(self, *, episode: Any, env: Any, env_index: int, env_runner: Any, **kwargs: Any) -> None:
        self.ended(episode, self._count(env, env_index, env_runner), env_index)

    def on_sample_end(self, *, env_runner: Any, **kwargs: Any) -> None:
        for env_index in self.versions:
            self._count(env_runner.env.unwrapped, env_index, env_runner)


class RolloutSpy(BatchedSpy):
    """Content with rollouts, so that the update is lean."""

    reads_rollouts = True


PATHS = {
    "rllib": (Spy, "roll-out and update: RLlib's own, because callbacks: Spy.on_episode_step is called at each step"),
    "batched": (BatchedSpy, "roll-out: batched; update: RLlib's own, because callbacks: BatchedSpy.on_episode_start"),
    "lean": (RolloutSpy, "roll-out: batched; update: lean"),
}


@pytest.fixture(
    scope="module",
    params=[
        ("PPO", "rllib"),
        ("DQN", "lean"),
        ("PPO", "batched"),
        pytest.param(("DQN", "rllib"), marks=pytest.mark.slow),
        pytest.param(("DQN", "batched"), marks=pytest.mark.slow),
        pytest.param(("PPO", "lean"), marks=pytest.mark.slow),
    ],
    ids="-".join,
)
def long_run(request: pytest.FixtureRequest, new_bench: Callable[[], Any], ray_session: None) -> Any:
    """Episodes of 972 steps, sampled in fragments of 50, with the runner in this process, on each path."""
    name, path = request.param
    spy, line = PATHS[path]
    bench = new_bench()
    bench.send_walks("AAA", "BBB", count=1_300)
    Spy.clear()
    tables: dict[str, Any] = {
        "callbacks": {"callbacks_class": spy},
        "env_runners": {"rollout_fragment_length": 50},
        "reporting": {"min_sample_timesteps_per_iteration": 400},
    }
    if name == "PPO":
        tables["training"] = {"train_batch_size_per_learner": 100}
    job = bench.job(name, env={"episode_length": LONG}, tables=tables, train={"iterations": 5, "record_steps": True})
    said: list[str] = []
    run = bench.train(job, say=said.append)
    assert [one for one in said if one.startswith(line)] == said[-2:-1]
    run.seen = Ends.seen
    return run


def test_an_episode_over_many_fragments_ends_once_with_all_its_steps(long_run: Any) -> None:
    ended = long_run.agent()
    assert [episode.steps for episode in ended] == [LONG] * 2
    assert len({episode.episode_id for episode in ended}) == 2
    assert all(episode.truncated and episode.reason == "length" for episode in ended)


def test_what_is_published_is_the_environments_own_record(long_run: Any) -> None:
    records = {one.rllib_id: one.record for one in long_run.seen}
    for episode in [*long_run.agent(), *long_run.agent("test")]:
        record = records[episode.rllib_episode_id]
        for name in ("steps", "total_reward", "symbol", "start_row", "env_seed", "final_value", "pnl"):
            assert getattr(episode, name) == getattr(record, name), name
        for name, value in vars(record.metrics).items():
            assert getattr(episode, name) == value, name
        assert (episode.symbols, episode.bars_per_year) == ([record.symbol], record.bars_per_year)
        trades = long_run.of("trades", episode_id=episode.episode_id)
        assert [trade for part in trades for trade in part.net_pnl] == record.trades["net_pnl"].tolist()
        fills = long_run.of("fills", episode_id=episode.episode_id)
        assert [price for part in fills for price in part.price] == record.fills["price"].tolist()
        steps = long_run.of("steps", episode_id=episode.episode_id)
        assert [value for part in steps for value in part.value] == record.steps_table["value"].tolist()
        actions = long_run.of("episode.actions", episode_id=episode.episode_id)
        assert [action for part in actions for action in part.actions] == record.actions.tolist()


def test_every_trade_and_fill_carries_the_version_that_decided_it(long_run: Any) -> None:
    seen = {one.rllib_id: one for one in long_run.seen}
    assert len({version for one in seen.values() for version in one.versions}) > 4
    for episode in long_run.agent():
        one = seen[episode.rllib_episode_id]
        assert len(one.versions) == LONG
        assert (episode.first_policy_version, episode.last_policy_version) == (one.versions[0], one.versions[-1])
        for trades in long_run.of("trades", episode_id=episode.episode_id):
            rows = slice(trades.first_row, trades.first_row + trades.rows)
            for name in ("entry", "exit"):
                deciding = one.record.trades[f"{name}_step"][rows]
                assert getattr(trades, f"{name}_policy_version") == [one.versions[step] for step in deciding]
        for fills in long_run.of("fills", episode_id=episode.episode_id):
            assert fills.policy_version == [one.versions[step] for step in fills.step]
        for steps in long_run.of("steps", episode_id=episode.episode_id):
            assert steps.policy_version == one.versions[steps.first_row : steps.first_row + steps.rows]


def test_iterations_are_those_in_which_episodes_ended(long_run: Any) -> None:
    expected = {one.rllib_id: one.iteration for one in long_run.seen}
    for episode in long_run.agent():
        assert episode.iteration == expected[episode.rllib_episode_id] > 1
    assert {episode.iteration for episode in long_run.agent("test")} == {5}
    assert [iteration.iteration for iteration in long_run.of("iteration.ended")] == [1, 2, 3, 4, 5]


def test_started_without_ended_are_the_episodes_in_progress(long_run: Any) -> None:
    started = {episode.episode_id for episode in long_run.of("episode.started", split="train")}
    ended = {episode.episode_id for episode in long_run.agent()}
    assert ended < started
    in_progress = [episode for episode in long_run.of("episode.started") if episode.episode_id in started - ended]
    assert sorted(episode.env_index for episode in in_progress) == [0, 1]


def test_driver_runner_and_evaluator_in_one_process_are_three_publishers(long_run: Any) -> None:
    publishers = long_run.publishers()
    assert set(publishers) == {"d0.0", "r0.0", "v0.0"}
    assert {one.attempt for one in publishers.values()} == {1}
    closing = long_run.of("publisher.report", closing=True)
    assert [report.closed_by for report in closing] == ["publisher"] * 3


def test_the_test_split_is_traded_once_a_symbol_by_the_agent_and_by_each_baseline(long_run: Any) -> None:
    played = Counter((episode.policy, episode.symbol) for episode in long_run.of("episode.ended", split="test"))
    assert played == {(p, s): 1 for p in POLICIES for s in ("AAA", "BBB")}
    windows = {window.split: window for window in long_run.of("window.opened")}
    for episode in long_run.of("episode.ended"):
        assert episode.window_id == windows[episode.split].window_id
        assert episode.data_hash == windows[episode.split].data_hash
    assert max(episode.last_ts for episode in long_run.agent()) <= windows["train"].last_ts


def test_the_run_says_what_it_is_and_how_it_ended(long_run: Any) -> None:
    [started], [attempt], [ended] = (long_run.of(name) for name in ("run.started", "attempt.started", "run.ended"))
    assert started.algorithm in ("PPO", "DQN")
    assert (started.seed, started.env) == (7, "millrace/Trading-v0")
    assert set(started.versions) == {"gymnasium", "millrace", "numpy", "python", "ray", "torch"}
    assert (attempt.resumed_from_iteration, attempt.num_env_runners, attempt.num_envs_per_env_runner) == (None, 0, 2)
    last = long_run.of("iteration.ended")[-1]
    assert (ended.status, ended.iterations, ended.env_steps) == ("completed", 5, last.env_steps_total)


def test_events_are_numbered_without_gaps(long_run: Any) -> None:
    numbers: dict[tuple[str, str], list[int]] = {}
    for event in long_run.events:
        if event.part == 1:
            numbers.setdefault((event.publisher_id, event.event_type), []).append(event.number)
    for seen in numbers.values():
        assert seen == list(range(1, len(seen) + 1))


# --- anybody's script -------------------------------------------------------------------------------------------------


def test_a_foreign_environment_publishes_its_episodes(bench: Any, ray_session: None) -> None:
    Spy.clear()
    config = PPOConfig().environment("CartPole-v1").env_runners(num_env_runners=0, num_envs_per_env_runner=2)
    config.training(train_batch_size_per_learner=200, minibatch_size=100, num_epochs=1)
    config.rl_module(model_config={"fcnet_hiddens": [8]}).debugging(seed=3)
    run_id = publish_events(config, log=bench.address, outbox=bench.outbox.directory, name="poles", notes="by hand")
    algorithm = config.build_algo()
    results = [algorithm.train() for _ in range(2)]
    finish_run(algorithm)
    algorithm.stop()

    run = bench.run()
    assert {event.run_id for event in run.events} == {run_id}
    [started] = run.of("run.started")
    assert (started.name, started.notes, started.env, started.seed) == ("poles", "by hand", "CartPole-v1", 3)
    ended = run.agent()
    assert len(ended) == sum(result["env_runners"]["num_episodes"] for result in results) > 2
    for episode in ended:
        # CartPole pays 1 a step.
        assert episode.total_reward == episode.steps == sum(episode.action_counts.values())
        assert episode.terminated
        assert (episode.reason, episode.symbol, episode.window_id) == ("terminated", None, None)
        [actions] = run.of("episode.actions", episode_id=episode.episode_id)
        assert Counter(map(str, actions.actions)) == episode.action_counts
    assert not run.of("trades")
    assert not run.of("fills")


def test_publish_events_keeps_the_callbacks_that_were_there(bench: Any) -> None:
    for before in (Spy, [Spy]):
        config = PPOConfig().callbacks(before)
        publish_events(config, log=bench.address, outbox=bench.outbox.directory)
        made = [item() for item in config.callbacks_class]
        assert [type(item) for item in made] == [Spy, EventCallbacks]
