"""The batched runner: the same steps as RLlib's own runner, whatever the environment's autoreset mode."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import tree
from gymnasium.vector import AutoresetMode
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from vector_envs import register_all

from env.market_data import MarketData
from env.scaler import Scaler
from env.settings import EnvSettings
from trainer.batched_runner import BatchedEnvRunner
from trainer.observation_source import ObservationSource
from trainer.rollout import EpisodeSummary, FullObservations, IndexedObservations, Rollout

SETTINGS = EnvSettings(window=4, episode_length=11)


@pytest.fixture(scope="module")
def data(bars: Any) -> MarketData:
    return MarketData([bars("AAA", 300), bars("BBB", 200)])


@pytest.fixture(scope="module", autouse=True)
def environments(ray_session: None, data: MarketData) -> None:
    register_all(data, SETTINGS)


class Reader(PPOTorchLearner):
    """Stands for a lean learner."""

    reads_rollouts = True


class Calls(RLlibCallback):
    """Writes down which callbacks are called, and with what."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int, Any]] = []

    def on_episode_created(self, *, episode: Any, env_index: int, **kwargs: Any) -> None:
        self.seen.append(("created", env_index, episode))

    def on_episode_start(self, *, episode: Any, env: Any, env_index: int, **kwargs: Any) -> None:
        self.seen.append(("start", env_index, episode))

    def on_episode_end(
        self, *, episode: Any, prev_episode_chunks: Any, env: Any, env_index: int, **kwargs: Any
    ) -> None:
        record = env.episode_record(env_index) if hasattr(env, "episode_record") else None
        self.seen.append(("end", env_index, (episode, list(prev_episode_chunks), record)))

    def on_sample_end(self, *, samples: Any, **kwargs: Any) -> None:
        self.seen.append(("sample", -1, samples))


def make_config(env: str, config: Any = None, **settings: Any) -> Any:
    config = config or PPOConfig()
    envs = settings.pop("envs", 3)
    config.environment(env, env_config=settings.pop("env_config", {}))
    config.env_runners(num_env_runners=0, num_envs_per_env_runner=envs, gym_env_vectorize_mode="vector_entry_point")
    config.rl_module(model_config={"fcnet_hiddens": [8], **settings.pop("model_config", {})})
    return config.debugging(seed=5).callbacks(Calls).env_runners(**settings)


def make_runner(env: str, config: Any = None, *, lean: bool = False, own: bool = True, **settings: Any) -> Any:
    config = make_config(env, config, **settings)
    if lean:
        config.training(learner_class=Reader)
    return (BatchedEnvRunner if own else SingleAgentEnvRunner)(config=config, worker_index=0, num_workers=0)


def calls(runner: Any) -> list[tuple[str, int, Any]]:
    found: list[tuple[str, int, Any]] = runner.callback_objects[0].seen
    return found


# --- RLlib's own runner is the oracle ---------------------------------------------------------------------------------


def columns(episode: Any) -> dict[str, Any]:
    """Everything in a fragment, its look-back included."""
    found = {name: getattr(episode, name).data for name in ("observations", "actions", "rewards")}
    for name, buffer in episode.extra_model_outputs.items():
        found |= {str((name, *path)): leaf for path, leaf in tree.flatten_with_path(buffer.data)}
    return found


@pytest.mark.parametrize(
    ("make", "env", "settings"),
    [
        (PPOConfig, "CartPole-v1", {}),
        (PPOConfig, "CartPole-v1", {"episode_lookback_horizon": 3}),
        (PPOConfig, "CartPole-v1", {"explore": False}),
        (DQNConfig, "CartPole-v1", {}),
        (PPOConfig, "CartPole-v1", {"model_config": {"use_lstm": True, "lstm_cell_size": 6}}),
        (PPOConfig, "Pendulum-v1", {"gym_env_vectorize_mode": "sync"}),
        (SACConfig, "Pendulum-v1", {"gym_env_vectorize_mode": "sync"}),
    ],
    ids=["ppo", "lookback", "deterministic", "dqn", "lstm", "ppo-box", "sac"],
)
def test_until_the_first_episode_ends_all_is_as_rllibs_runner_has_it(
    make: Any, env: str, settings: dict[str, Any]
) -> None:
    # Afterwards RLlib spends a forward, and its random numbers, on each environment that is reset.
    fragments = []
    for own in (True, False):
        runner = make_runner(env, make(), own=own, **settings)
        fragments.append([*runner.sample(num_timesteps=9), *runner.sample(num_timesteps=12)])
    assert len(fragments[0]) == len(fragments[1]) == 6
    for ours, theirs in zip(*fragments, strict=True):
        assert (ours.t_started, ours.t, len(ours)) == (theirs.t_started, theirs.t, len(theirs))
        mine, other = columns(ours), columns(theirs)
        assert mine.keys() == other.keys()
        for name, values in mine.items():
            assert values.shape == np.asarray(other[name]).shape, name
            # A forward's last bit depends on where in memory its input lies.
            np.testing.assert_allclose(values, other[name], rtol=1e-6, atol=1e-7, err_msg=name)
        assert ours.observations.lookback == theirs.observations.lookback
        assert ours.rewards.lookback == theirs.rewards.lookback
        assert len(ours.infos.data) == len(theirs.infos.data)


# --- autoreset --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=list(AutoresetMode), ids=lambda mode: mode.name)
def mode(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_episodes_are_whole_in_every_autoreset_mode(mode: AutoresetMode) -> None:
    runner = make_runner(f"counting-{mode.name}")
    fragments: dict[str, list[Any]] = {}
    counted = 0
    for _ in range(6):
        samples = runner.sample(num_timesteps=8)
        counted += sum(len(fragment) for fragment in samples)
        for fragment in samples:
            fragments.setdefault(fragment.id_, []).append(fragment)
    ended = []
    for parts in fragments.values():
        whole = parts[0]
        for part in parts[1:]:
            whole.concat_episode(part)  # checks that they fit together
        steps = len(whole)
        episode = whole.observations[0][0]
        assert whole.get_observations().tolist() == [[episode, count] for count in range(steps + 1)]
        assert whole.get_rewards().tolist() == list(range(1, steps + 1))
        assert [info.get("count") for info in whole.get_infos()] == [None, *range(1, steps + 1)]
        assert whole.get_infos(0)["episode"] == episode
        if whole.is_done:
            assert (whole.is_terminated, whole.is_truncated) == (episode % 2 == 0, episode % 2 == 1)
            ended.append(steps)
        else:
            assert steps < 5
    assert set(ended) == {3, 4, 5}
    metrics = runner.get_metrics()
    assert metrics["num_env_steps_sampled"].peek() == counted >= 48
    assert metrics["num_episodes"].peek() == len(ended)
    assert metrics["episode_len_mean"].peek() == pytest.approx(np.mean(ended))
    assert metrics["episode_return_mean"].peek() == pytest.approx(np.mean([n * (n + 1) / 2 for n in ended]))


def test_rollouts_hold_the_same_transitions_in_every_autoreset_mode(mode: AutoresetMode) -> None:
    runner = make_runner(f"counting-{mode.name}", lean=True)
    expected_first = None
    for _ in range(5):
        [rollout] = runner.sample(num_timesteps=8)
        assert isinstance(rollout, Rollout)
        assert expected_first in (None, rollout.first_step)
        expected_first = rollout.first_step + len(rollout.rewards)
        assert isinstance(rollout.observations, FullObservations)
        following = rollout.next_observations()
        assert isinstance(following, FullObservations)
        valid = np.ones(rollout.rewards.shape, bool) if rollout.valid is None else rollout.valid
        assert (mode is AutoresetMode.NEXT_STEP) == (rollout.valid is not None)
        before, after = rollout.observations.values[:-1][valid], following.values[valid]
        np.testing.assert_array_equal(after - before, np.broadcast_to([0, 1], after.shape))
        np.testing.assert_array_equal(rollout.rewards[valid], after[:, 1])
        ended = (rollout.terminateds | rollout.truncateds)[valid]
        lengths = np.broadcast_to(np.arange(3, 6), valid.shape)[valid]
        np.testing.assert_array_equal(ended, after[:, 1] == lengths)
        assert len(rollout.finals) == ended.sum()
        assert len(rollout) == valid.sum() >= 8
        assert rollout.extras["action_logp"].shape == rollout.rewards.shape
        assert rollout.extras["action_dist_inputs"].shape == (*rollout.rewards.shape, 2)


def test_callbacks_come_in_rllibs_order_and_see_each_episode_once(mode: AutoresetMode) -> None:
    runner = make_runner(f"counting-{mode.name}", envs=1)
    chunks = [fragment for _ in range(3) for fragment in runner.sample(num_timesteps=2)]
    names = [name for name, _, _ in calls(runner)]
    assert [name for name in names if name != "sample"][:6] == ["created", "start", "end", "created", "start", "end"]
    episode, earlier, _ = next(what for name, _, what in calls(runner) if name == "end")
    assert len(earlier) == 1
    assert earlier[0] is chunks[0]
    assert episode is chunks[1]
    assert (episode.t_started, len(episode), episode.id_) == (2, 1, chunks[0].id_)


# --- how much is sampled ----------------------------------------------------------------------------------------------


def test_by_episodes_exactly_as_many_whole_ones_come(mode: AutoresetMode) -> None:
    runner = make_runner(f"counting-{mode.name}", lean=True)
    for wanted in (1, 4, 2):
        episodes = runner.sample(num_episodes=wanted)
        assert len(episodes) == wanted
        assert all(episode.is_done and episode.t_started == 0 for episode in episodes)
        assert all(episode.observations[0][1] == 0 for episode in episodes)
    [rollout] = runner.sample(num_timesteps=6)
    assert rollout.observations.values[0, :, 1].tolist() == [0, 0, 0]


def test_a_forced_reset_begins_new_episodes_and_joins_nothing() -> None:
    runner = make_runner("counting-DISABLED", lean=True)
    [one] = runner.sample(num_timesteps=6)
    [two] = runner.sample(num_timesteps=6, force_reset=True)
    assert two.observations.values[0, :, 1].tolist() == [0, 0, 0]
    assert two.first_step > one.first_step + len(one.rewards)


def test_without_numbers_a_sample_is_the_configs_fragment() -> None:
    runner = make_runner("counting-DISABLED", rollout_fragment_length=7)
    assert sum(len(fragment) for fragment in runner.sample()) == 21


def test_random_actions_come_from_the_seeded_space_and_have_no_outputs() -> None:
    taken = []
    for _ in range(2):
        runner = make_runner("counting-DISABLED", lean=True)
        [rollout] = runner.sample(num_timesteps=60, random_actions=True)
        assert not rollout.extras
        taken.append(rollout.actions)
    np.testing.assert_array_equal(*taken)
    assert set(taken[0].ravel().tolist()) == {0, 1}


# --- failures, weights ------------------------------------------------------------------------------------------------


def test_a_failing_environment_is_made_again_where_the_config_says_so() -> None:
    config = PPOConfig().fault_tolerance(restart_failed_sub_environments=True)
    runner = make_runner("counting-DISABLED", config, env_config={"failures": [5]})
    fragments = runner.sample(num_timesteps=24)
    metrics = runner.get_metrics()
    assert metrics["num_env_step_failures"].peek() == 1
    # What had ended before it failed is kept; what was in progress is dropped, as RLlib has it.
    assert [int(fragment.observations[0][0]) for fragment in fragments[:2]] == [0, 0]
    assert sum(len(fragment) for fragment in fragments) == 24 + 3 + 4
    ids = {episode.id_ for name, _, episode in calls(runner) if name == "start"}
    assert {fragment.id_ for fragment in fragments} < ids


def test_a_failing_environment_fails_the_runner_by_default() -> None:
    runner = make_runner("counting-DISABLED", env_config={"failures": [5]})
    with pytest.raises(RuntimeError, match="broken on purpose"):
        runner.sample(num_timesteps=30)


def test_weights_and_counters_go_from_runner_to_runner() -> None:
    one, other = make_runner("CartPole-v1"), make_runner("CartPole-v1")
    with torch.no_grad():
        for parameter in one.module.parameters():
            parameter.add_(0.5)
    other.set_state(one.get_state() | {"weights_seq_no": 4, "num_env_steps_sampled_lifetime": 1_000})
    assert (other.weights_seq_no, other.num_env_steps_sampled_lifetime) == (4, 1_000)
    [fragment, *_] = other.sample(num_timesteps=3, explore=False)
    assert fragment.get_extra_model_outputs("weights_seq_no").tolist() == [4]
    expected = one.module.forward_inference({"obs": torch.from_numpy(fragment.get_observations()[:1])})
    np.testing.assert_allclose(
        fragment.get_extra_model_outputs("action_dist_inputs"),
        expected["action_dist_inputs"].detach().numpy(),
        rtol=1e-6,
    )


# --- our own environment ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(environments: None, data: MarketData) -> tuple[list[Any], list[Rollout], Any]:
    """The same steps as episodes and as rollouts, in samples of 9 steps."""
    plain, lean = make_runner("market"), make_runner("market", lean=True)
    episodes, rollouts = [], []
    for number in range(4):
        for runner in (plain, lean):
            runner.set_state({"rl_module": plain.module.get_state(), "weights_seq_no": 10 + number})
            torch.manual_seed(number)
            (episodes if runner is plain else rollouts).extend(runner.sample(num_timesteps=27))
    return episodes, rollouts, lean


def test_gathered_observations_are_those_that_the_policy_saw(both: Any, data: MarketData) -> None:
    episodes, rollouts, _ = both
    source = ObservationSource("w1", data, Scaler.fit(data), SETTINGS)
    steps = {}
    for episode in episodes:
        for t in range(len(episode)):
            key = (episode.id_, episode.t_started + t)
            steps[key] = (episode.observations[t], episode.observations[t + 1], episode.get_rewards(t))
    expected = sorted((*map(tuple, (seen, after)), reward) for seen, after, reward in steps.values())
    found = []
    for rollout in rollouts:
        assert isinstance(rollout.observations, IndexedObservations)
        before = source.whole(rollout.observations.at(slice(0, -1))).numpy()
        after = source.whole(rollout.next_observations()).numpy()  # type: ignore[arg-type]
        found += [
            (tuple(seen), tuple(then), reward)
            for seen, then, reward in zip(before, after, rollout.rewards.ravel(), strict=True)
        ]
    assert len(found) == len(expected) == 4 * 27
    for ours, theirs in zip(sorted(found), expected, strict=True):
        assert ours[:2] == theirs[:2]
        assert ours[2] == pytest.approx(theirs[2], abs=1e-7)


def test_a_transition_takes_few_bytes(both: Any) -> None:
    _, rollouts, _ = both
    seen = rollouts[0].observations
    assert sum(column[0, 0].nbytes for column in (seen.rows, seen.symbols, seen.accounts)) <= 30


def test_an_ended_episode_is_told_whole_with_its_record_and_its_versions(both: Any) -> None:
    _, _, runner = both
    ended = [(env, *what) for name, env, what in calls(runner) if name == "end"]
    assert len(ended) >= 6
    for _, summary, chunks, record in ended:
        assert isinstance(summary, EpisodeSummary)
        assert chunks == []
        assert len(summary) == record.steps == SETTINGS.episode_length
        assert summary.get_actions().tolist() == record.actions.tolist()
        assert summary.get_return() == pytest.approx(record.total_reward, abs=1e-6)
        assert summary.is_truncated
        assert not summary.is_terminated
    # The first episodes begin with the first sample() and end in the second, after 9 steps of it.
    assert [summary.get_extra_model_outputs("weights_seq_no").tolist() for _, summary, *_ in ended[:3]] == [
        [10] * 9 + [11] * 2
    ] * 3
    assert len({summary.id_ for _, summary, *_ in ended}) == len(ended)


def test_the_start_of_an_episode_tells_where_it_begins(both: Any) -> None:
    _, _, runner = both
    starts = [episode.get_infos(0) for name, _, episode in calls(runner) if name == "start"]
    records = [what[2] for name, _, what in calls(runner) if name == "end"]
    assert [(info["symbol"], info["start_row"]) for info in starts[: len(records)]] == [
        (record.symbol, record.start_row) for record in records
    ]


# --- RLlib's learners -------------------------------------------------------------------------------------------------

LEARNING: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "PPO": (PPOConfig, "market", {"train_batch_size_per_learner": 200, "minibatch_size": 100, "num_epochs": 1}),
    "DQN": (DQNConfig, "market", {"train_batch_size": 32, "num_steps_sampled_before_learning_starts": 50, "n_step": 3}),
    "SAC": (
        SACConfig,
        "Pendulum-v1",
        {"train_batch_size_per_learner": 32, "num_steps_sampled_before_learning_starts": 50},
    ),
    "APPO": (APPOConfig, "market", {"train_batch_size_per_learner": 120}),
    "IMPALA": (IMPALAConfig, "market", {"train_batch_size_per_learner": 120}),
    "LSTM": (PPOConfig, "CartPole-v1", {"train_batch_size_per_learner": 200, "minibatch_size": 100, "num_epochs": 1}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNING)
def test_every_algorithm_of_rllib_learns_from_what_the_batched_runner_brings(name: str) -> None:
    make, env, training = LEARNING[name]
    model_config = {"use_lstm": True, "lstm_cell_size": 6, "max_seq_len": 5} if name == "LSTM" else {}
    config = make_config(env, make(), model_config=model_config, env_runner_cls=BatchedEnvRunner)
    config.env_runners(rollout_fragment_length="auto" if make is PPOConfig else 10)
    if env == "Pendulum-v1":
        config.env_runners(gym_env_vectorize_mode="sync")
    # A remote learner could not import this file.
    config.learners(num_learners=0)
    config.training(**training).reporting(min_sample_timesteps_per_iteration=200, min_time_s_per_iteration=0)
    algorithm = config.build_algo()
    try:
        before = algorithm.get_weights()["default_policy"]
        results = [algorithm.train() for _ in range(3)]
        after = algorithm.get_weights()["default_policy"]
    finally:
        algorithm.stop()
    assert results[-1]["env_runners"]["num_env_steps_sampled_lifetime"] >= 600
    if env != "Pendulum-v1":  # whose episodes are 200 steps long
        assert sum(result["env_runners"]["num_episodes"] for result in results) > 5
    assert any(np.abs(after[key] - before[key]).max() > 0 for key in before)
    assert all(np.isfinite(values).all() for values in after.values())
