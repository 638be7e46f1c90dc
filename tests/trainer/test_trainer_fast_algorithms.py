"""Algorithms in rounds: what they report, what they learn from, and their checkpoints in RLlib's own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bar_makers import without
from ray.rllib.algorithms.appo import APPO, APPOConfig
from ray.rllib.algorithms.dqn import DQN, DQNConfig
from ray.rllib.algorithms.impala import IMPALA, IMPALAConfig
from ray.rllib.algorithms.ppo import PPO, PPOConfig
from ray.rllib.algorithms.sac import SAC, SACConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from rollout_makers import quick_learners

from env.bars import SymbolBars
from env.market_data import MarketData
from env.scaler import Scaler
from env.settings import EnvSettings
from trainer.environments import ENV_ID, follow_window, register
from trainer.fast_algorithms import FastAPPO, FastDQN, FastIMPALA, FastPPO, FastSAC
from trainer.fast_path import FastPath, use_fast_path
from trainer.lean_dqn import LeanDQNLearner
from trainer.lean_sac import LeanSACLearner
from trainer.observation_source import ObservationSource
from trainer.places import places_of
from trainer.settings import EnvConfig
from trainer.window_store import WindowStore
from trainer.windows import History, Window, open_window

__all__ = ["quick_learners"]  # a fixture

DAY = 86_400_000_000
SETTINGS = EnvSettings(window=4, episode_length=20)
PORTFOLIO = SETTINGS.model_copy(update={"portfolio": True, "actions": "weights"})
CONFIGS: dict[str, tuple[type, dict[str, Any], dict[str, Any]]] = {
    "PPO": (PPOConfig, {"train_batch_size_per_learner": 160, "minibatch_size": 64, "num_epochs": 2}, {}),
    "IMPALA": (IMPALAConfig, {"train_batch_size_per_learner": 160}, {"rollout_fragment_length": 32}),
    "APPO": (
        APPOConfig,
        {"train_batch_size_per_learner": 160, "circular_buffer_iterations_per_batch": 2},
        {"rollout_fragment_length": 32},
    ),
    "DQN": (
        DQNConfig,
        {"train_batch_size_per_learner": 16, "training_intensity": 2.0, "num_steps_sampled_before_learning_starts": 64},
        {"rollout_fragment_length": 8},
    ),
    "SAC": (
        SACConfig,
        {"train_batch_size_per_learner": 16, "training_intensity": 1.0, "num_steps_sampled_before_learning_starts": 64},
        {"rollout_fragment_length": 8},
    ),
}

CLASSES = {"PPO": FastPPO, "DQN": FastDQN, "SAC": FastSAC, "IMPALA": FastIMPALA, "APPO": FastAPPO}
LEARNERS: dict[str, dict[str, Any]] = {"IMPALA": {"num_learners": 0}, "APPO": {"num_learners": 0}}


def history(make: Callable[..., SymbolBars], count: int = 400) -> History:
    facts = {"feed": "walk", "interval": "1d", "cluster_id": "c", "topic": "t", "topic_id": "i"}
    facts |= {"partitions": [0], "start_offsets": [0], "end_offsets": [1]}
    return History((make("AAA", count), make("BBB", count, seed=2)), facts, {})


@pytest.fixture
def store(ray_session: None, bars: Any, request: pytest.FixtureRequest) -> Iterator[WindowStore]:
    """A window store of its own for each test, with a window in it."""
    register()
    opened = WindowStore(request.node.name)
    opened.put(open_window(history(bars), "train", 200 * DAY, SETTINGS))
    yield opened
    opened.close()


def make(
    name: str,
    store: WindowStore,
    bars: Any,
    runners: int = 0,
    least: int = 400,
    settings: EnvSettings = SETTINGS,
    **learners: Any,
) -> Any:
    kind, training, sampling = CONFIGS[name]
    scaler = Scaler.fit(open_window(history(bars), "train", 200 * DAY, SETTINGS).data)
    env = EnvConfig(
        window_store=store.name,
        split="train",
        settings=settings.model_dump(mode="json"),
        scaler=scaler.to_dict(),
        seed=1,
        num_envs=5,
    )
    config = kind().environment(ENV_ID, env_config=env.model_dump(mode="json")).training(**training)
    config.env_runners(num_env_runners=runners, num_envs_per_env_runner=5, **sampling)
    config.debugging(seed=3, log_level="ERROR").learners(**learners).rl_module(model_config={"fcnet_hiddens": [8]})
    config.reporting(min_sample_timesteps_per_iteration=least, min_time_s_per_iteration=0)
    return config


def build(config: Any) -> Any:
    path = use_fast_path(config)
    assert path == FastPath(None, None, path.no_kernels)
    return config.build_algo()


def weights(algorithm: Any) -> dict[str, Any]:
    found: dict[str, Any] = algorithm.learner_group.get_weights()[DEFAULT_MODULE_ID]
    return found


def same(left: dict[str, Any], right: dict[str, Any], within: float = 0.0) -> bool:
    return left.keys() == right.keys() and all(np.abs(left[name] - right[name]).max() <= within for name in left)


@pytest.mark.parametrize(("name", "kind"), CLASSES.items())
def test_an_iteration_is_several_rounds_reported_once(store: WindowStore, bars: Any, name: str, kind: type) -> None:
    algorithm = build(make(name, store, bars, **LEARNERS.get(name, {})))
    assert type(algorithm) is kind
    results = [algorithm.train() for _ in range(2)]
    algorithm.stop()
    steps = {"DQN": 400, "SAC": 400}.get(name, 480)  # 10 fragments of 40, or 3 batches of 160
    for number, result in enumerate(results, start=1):
        runners, learner = result["env_runners"], result["learners"][DEFAULT_MODULE_ID]
        assert runners["num_env_steps_sampled"] == steps
        assert runners["num_env_steps_sampled_lifetime"] == number * steps
        assert runners["num_episodes_lifetime"] == number * steps // 100 * 5
        assert np.isfinite(runners["episode_return_mean"])
        assert np.isfinite(learner["total_loss"])
        trained = learner["num_module_steps_trained"]
        # PPO: 5 minibatches of 64 for 2 epochs of 160; DQN: 5 of 16 for 40 steps; SAC: 2 (2.5, rounded as RLlib does);
        # both from the second round on.
        rounds = 10 if number == 2 else 9
        expected = {"PPO": 3 * 5 * 64, "DQN": rounds * 5 * 16, "SAC": rounds * 2 * 16}
        # IMPALA and APPO: each piece of an episode is followed by one step for its bootstrap value, and of the 3 x 5
        # fragments of 32 steps some hold the end of one or two episodes of 20.
        passes = {"IMPALA": 1, "APPO": 2}.get(name, 0)
        if passes:
            assert 495 + 20 <= trained // passes <= 495 + 30
        else:
            assert trained == expected[name]
        for timer in ("env_runner_sampling_timer", "learner_update_timer", "synch_weights"):
            assert result["timers"][timer] > 0


def test_seeds_reproduce_rounds(store: WindowStore, bars: Any) -> None:
    ends = []
    for _ in range(2):
        algorithm = build(make("DQN", store, bars))
        algorithm.train()
        algorithm.train()
        ends.append(weights(algorithm))
        algorithm.stop()
    assert same(*ends)


@pytest.mark.parametrize("name", ["PPO", "DQN"])
def test_sampling_while_learning_is_one_version_behind(store: WindowStore, bars: Any, name: str) -> None:
    algorithm = build(make(name, store, bars, learner_config_dict={"sample_while_learning": True}))
    seen: list[tuple[int, str]] = []
    learner, sample = algorithm.learner_group._learner, algorithm.env_runner.sample
    update = learner.update

    def noting_sample(**how: Any) -> Any:
        rollouts = sample(**how)
        seen.append((rollouts[0].weights_seq_no, threading.current_thread().name))
        return rollouts

    def noting_update(**how: Any) -> Any:
        seen.append((-1, threading.current_thread().name))
        return update(**how)

    algorithm.env_runner.sample, learner.update = noting_sample, noting_update
    algorithm.train()
    result = algorithm.train()
    algorithm.stop()
    versions = [version for version, _ in seen if version >= 0]
    # In each iteration the first two rounds are sampled with what the one before has left.
    start = 1 if name == "PPO" else 0
    assert versions[:3] == [0, 0, start]
    assert {thread for version, thread in seen if version >= 0} == {"MainThread"}
    assert any(thread.startswith("update") for version, thread in seen if version == -1)
    assert result["env_runners"]["num_env_steps_sampled_lifetime"] == 2 * {"PPO": 480, "DQN": 400}[name]


class Checks(LeanDQNLearner):
    """Compares every observation that it learns from with the whole history."""

    truth: ObservationSource
    accounts = 0
    checked = 0
    windows: set[str]

    def build(self) -> None:
        super().build()
        self.windows = set()

    def _columns(self, transitions: Any) -> Any:
        columns = super()._columns(transitions)
        for column, seen in (
            (Columns.OBS, transitions.observations),
            (Columns.NEXT_OBS, transitions.next_observations),
        ):
            assert torch.allclose(columns[column], self.truth.whole(seen), atol=1e-6)
            self.windows.add(seen.window_id)
            self.checked += len(seen.rows)
        return columns


class ChecksSAC(Checks, LeanSACLearner):
    """The same of SAC."""


@pytest.mark.parametrize(
    ("name", "learner_class", "settings"), [("DQN", Checks, SETTINGS), ("SAC", ChecksSAC, PORTFOLIO)]
)
def test_every_gathered_observation_is_true_across_five_moves(
    store: WindowStore, bars: Any, name: str, learner_class: type[Checks], settings: EnvSettings
) -> None:
    # Each has gaps of its own: a portfolio's clock is neither's.
    first, second = history(bars).bars
    days = np.arange(len(first))
    whole = replace(history(bars), bars=(without(first, days % 7 == 6), without(second, days % 5 == 4)))
    windows = [slide(whole, begin, begin + 150, settings) for begin in (0, 40, 80, 120, 160, 200)]
    scaler = Scaler.fit(open_window(history(bars), "train", 200 * DAY, SETTINGS).data)
    everything = open_window(whole, "train", 401 * DAY, settings).data
    store.put(windows[0])
    config = make(name, store, bars, least=600, settings=settings)
    use_fast_path(config)
    config.learners(learner_class=learner_class).training(n_step=3, replay_buffer_config={"capacity": 2_000})
    algorithm = config.build_algo()
    learner, buffer = algorithm.learner_group._learner, algorithm.local_replay_buffer
    learner.truth = ObservationSource("all", everything, scaler, settings)
    sizes = []
    for number, window in enumerate(windows):
        if number:
            store.put(window)
            algorithm.env_runner_group.foreach_env_runner(follow_window)
        before = len(buffer)
        algorithm.train()
        sizes.append((before, len(buffer)))
        places = places_of(window.data, settings)
        [batch] = buffer.sample(500)
        seen: Any = batch.observations
        assert seen.window_id == window.opened.window_id
        assert seen.symbol_names == places.names
        assert (seen.rows >= places.first[seen.symbols]).all()
    algorithm.stop()
    assert learner.windows == {window.opened.window_id for window in windows}
    assert learner.checked > 5_000
    assert any(after < before + 600 for before, after in sizes[1:])  # rows have left


def slide(whole: History, first: int, stop: int, settings: EnvSettings) -> Window:
    """The window of the days from ``first`` to ``stop``; rows stay absolute."""
    opened = open_window(whole, "train", (stop + 1) * DAY, settings).opened
    begin, end = int(whole.bars[0].ts_close[0]) + first * DAY, int(whole.bars[0].ts_close[0]) + stop * DAY
    parts = [one.cut(*np.searchsorted(one.ts_close, (begin, end)).tolist()) for one in whole.bars]
    return Window(MarketData(parts, settings.features), opened.model_copy(update={"window_id": f"rows-{first}"}))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")  # of its own settings, when it starts learners
@pytest.mark.parametrize("name", CLASSES)
def test_remote_runners_and_learners_do_the_same_work(store: WindowStore, bars: Any, name: str) -> None:
    algorithm = build(make(name, store, bars, runners=2, least=1_000, **LEARNERS.get(name, {"num_learners": 2})))
    results = [algorithm.train() for _ in range(2)]
    algorithm.stop()
    assert results[1]["env_runners"]["num_env_steps_sampled_lifetime"] >= 2_000
    assert np.isfinite(results[1]["learners"][DEFAULT_MODULE_ID]["total_loss"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "stock"), [("PPO", PPO), ("DQN", DQN), ("SAC", SAC), ("APPO", APPO), ("IMPALA", IMPALA)]
)
def test_checkpoints_are_exchanged_with_rllibs_own(
    store: WindowStore, bars: Any, name: str, stock: type, tmp_path: Path
) -> None:
    learners = LEARNERS.get(name, {})
    fast, plain = build(make(name, store, bars, **learners)), make(name, store, bars, **learners).build_algo()
    assert type(plain) is stock
    for number, (source, target) in enumerate(((fast, plain), (plain, fast))):
        source.train()
        if source is plain:
            source.learner_group._learner.shutdown()  # RLlib's IMPALA goes on learning in a thread
        path = str(tmp_path / str(number))
        source.save_to_path(path)
        target.restore_from_path(path)
        assert same(weights(source), weights(target))
        both = [one.learner_group._learner for one in (source, target)]
        states = [one.get_state(components="optimizer")["optimizer"] for one in both]
        for key, state in states[0].items():
            for index, moments in state["state"]["state"].items():
                for moment, value in moments.items():
                    assert np.array_equal(value, states[1][key]["state"]["state"][index][moment])
            groups = [one[key]["state"]["param_groups"] for one in states]
            assert groups[0] == groups[1]
        target.train()
    fast.stop()
    plain.stop()
