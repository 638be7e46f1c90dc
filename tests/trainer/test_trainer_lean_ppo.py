"""The lean PPO learner against RLlib's own, on the same rollouts."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.core import ALL_MODULES, DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from ray.rllib.utils.postprocessing.value_predictions import compute_value_targets
from rollout_makers import FakeRunner, act, as_episodes, largest_difference, parameters, quick_learners

from schemas.errors import InputError, SettingsError
from trainer.kernel_mlp import Chain
from trainer.kernel_ppo import KernelPPOLearner
from trainer.lean_ppo import LeanPPOLearner, generalized_advantages

__all__ = ["quick_learners"]  # a fixture

SIZE = 6
A2C: dict[str, Any] = {
    "minibatch_size": None,
    "num_epochs": 1,
    "clip_param": 1e9,
    "vf_clip_param": float("inf"),
    "use_kl_loss": False,
    "kl_coeff": 0.0,
    "lambda_": 1.0,
    "grad_clip": 0.5,
}


class StandardiseSteps(ConnectorV2):
    """Standardises over steps alone, as the lean learner does."""

    def __call__(self, *, batch: Any, **kwargs: Any) -> Any:
        columns = batch[DEFAULT_MODULE_ID]
        steps = columns[Columns.LOSS_MASK]
        advantages = columns[Postprocessing.ADVANTAGES]
        mean, spread = advantages[steps].mean(), advantages[steps].std(correction=0)
        columns[Postprocessing.ADVANTAGES] = (advantages - mean) / spread
        return batch


class Oracle(PPOTorchLearner):
    def build(self) -> None:
        super().build()
        self._learner_connector.append(StandardiseSteps())


def make(learner_class: type, continuous: bool = False, model: dict[str, Any] | None = None, **training: Any) -> Any:
    layers = {"fcnet_hiddens": [16], "vf_share_layers": False, **(model or {})}
    config = PPOConfig().debugging(seed=5).rl_module(model_config=layers)
    config.training(**{"minibatch_size": None, "num_epochs": 1, "lr": 1e-3, **training}).learners(
        learner_class=learner_class
    )
    actions = gym.spaces.Box(-1, 1, (2,)) if continuous else gym.spaces.Discrete(3)
    spaces = {DEFAULT_MODULE_ID: (gym.spaces.Box(-1, 1, (SIZE,), np.float32), actions)}
    return config.build_learner(spaces=spaces)


def learn(learner: Any, episodes: list[Any], steps: int = 0, **how: Any) -> dict[str, Any]:
    data = TrainingData(episodes=episodes)
    results: dict[str, Any] = learner.update(
        training_data=data, timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: steps}, **how
    )
    return results


CLIPS: dict[str, Any] = {"use_kl_loss": False, "grad_clip": 0.1, "entropy_coeff": 0.02, "vf_clip_param": 0.05}
SCHEDULES: dict[str, Any] = {"entropy_coeff": [[0, 0.1], [100, 0.0]], "lr": [[0, 1e-2], [200, 1e-4]]}
SHARED: dict[str, Any] = {"model": {"vf_share_layers": True, "fcnet_activation": "relu"}, **CLIPS, "vf_clip_param": 10}


@pytest.mark.parametrize(
    ("kind", "training", "continuous"),
    [
        *((LeanPPOLearner, {}, continuous) for continuous in (False, True)),
        *((LeanPPOLearner, CLIPS, continuous) for continuous in (False, True)),
        *((LeanPPOLearner, SCHEDULES | {"kl_coeff": 1.0, "kl_target": 1e-4}, one) for one in (False, True)),
        *((LeanPPOLearner, A2C, continuous) for continuous in (False, True)),
        (KernelPPOLearner, CLIPS, False),
        (KernelPPOLearner, SHARED, False),
        (KernelPPOLearner, SCHEDULES | {"use_kl_loss": False}, False),
        (KernelPPOLearner, A2C, False),
    ],
)
@pytest.mark.parametrize("seeds", [(1, 2), (1,)])
def test_updates_are_those_of_rllib(
    kind: type, training: dict[str, Any], continuous: bool, seeds: tuple[int, ...]
) -> None:
    ours, theirs = (make(learner, continuous, **training) for learner in (kind, Oracle))
    ours.set_state(theirs.get_state())
    assert largest_difference(ours, theirs) == 0.0
    start = parameters(theirs)
    runners = [
        FakeRunner(4, seed, full=True, size=SIZE, continuous=continuous, actions=2 + (not continuous)) for seed in seeds
    ]
    for update in range(4):
        rollouts = [act(runner.sample(20), theirs) for runner in runners]
        ours_results = learn(ours, rollouts, 50 * update)
        their_results = learn(theirs, [one for rollout in rollouts for one in as_episodes(rollout)], 50 * update)
        for name in (
            "total_loss",
            "policy_loss",
            "vf_loss",
            "entropy",
            "mean_kl_loss",
            "default_optimizer_learning_rate",
            "curr_entropy_coeff",
            *(["curr_kl_coeff"] if training.get("use_kl_loss", True) else []),
            *(["gradients_default_optimizer_global_norm"] if "grad_clip" in training else []),
        ):
            our, their = ours_results[DEFAULT_MODULE_ID][name].peek(), their_results[DEFAULT_MODULE_ID][name].peek()
            assert float(our) == pytest.approx(float(their), abs=1e-5, rel=1e-5), name
        assert largest_difference(ours, theirs) < 1e-5
    assert max(np.abs(value - start[name]).max() for name, value in parameters(ours).items()) > 1e-3
    assert ours_results[ALL_MODULES]["num_env_steps_trained"].peek() == 80 * len(seeds)


def test_minibatches_of_several_epochs_visit_each_step_once_an_epoch() -> None:
    learner = make(LeanPPOLearner)
    rollout = act(FakeRunner(5, full=True, size=SIZE).sample(20), learner)
    count, batches = learner.minibatches([rollout], num_epochs=3, minibatch_size=25, shuffle_batch_per_epoch=True)
    seen = [batch[Columns.OBS].numpy() for batch in batches]
    assert (count, len(seen)) == (12, 12)
    whole: Any = rollout.observations
    truth = np.sort(whole.values[:-1].reshape(-1, SIZE)[:, 0])
    epochs = [np.concatenate(seen[4 * epoch : 4 * epoch + 4])[:, 0] for epoch in range(3)]
    for epoch in epochs:
        assert np.array_equal(np.sort(epoch), truth)
    assert not np.array_equal(epochs[0], epochs[1])
    assert len(list(learner.minibatches([rollout], minibatch_size=30)[1])) == 4  # 120 of 100: the last is filled up


@pytest.mark.parametrize("kind", [LeanPPOLearner, KernelPPOLearner])
@pytest.mark.parametrize(
    "training",
    [
        {"use_kl_loss": False, "vf_clip_param": 0.5, "entropy_coeff": 0.02},
        {"use_kl_loss": False, "vf_clip_param": float("inf"), "grad_clip": 0.1},
    ],
)
def test_minibatches_without_a_report_have_rllibs_loss(
    kind: type, training: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = make(kind, **training), make(LeanPPOLearner, **training)
    assert ours.has_bare_loss()
    assert not make(LeanPPOLearner, continuous=True, **training).has_bare_loss()
    assert not make(LeanPPOLearner).has_bare_loss()
    monkeypatch.setattr(theirs, "has_bare_loss", lambda: False)
    rollout = act(FakeRunner(5, full=True, size=SIZE).sample(20), ours)
    for learner in (ours, theirs):
        learn(learner, [rollout], num_epochs=4, minibatch_size=25, shuffle_batch_per_epoch=True)
    assert largest_difference(ours, theirs) < 1e-5


def test_seeds_reproduce_and_minibatches_learn() -> None:
    learners = [make(LeanPPOLearner) for _ in range(2)]
    rollout = act(FakeRunner(5, full=True, size=SIZE).sample(20), learners[0])
    how = {"num_epochs": 3, "minibatch_size": 25, "shuffle_batch_per_epoch": True}
    results = [learn(learner, [rollout], **how) for learner in learners]
    assert largest_difference(*learners) == 0.0
    assert results[0][ALL_MODULES]["num_module_steps_trained"].peek() == 300


def test_columns_of_a_minibatch_belong_together() -> None:
    learner = make(LeanPPOLearner)
    rollouts = [act(FakeRunner(3, seed, full=True, size=SIZE).sample(9), learner) for seed in (1, 2)]
    rows = {}
    for rollout in rollouts:
        whole: Any = rollout.observations
        for t in range(9):
            for b in range(3):
                rows[whole.values[t, b].tobytes()] = (rollout.actions[t, b], rollout.extras[Columns.ACTION_LOGP][t, b])
    _, batches = learner.minibatches(rollouts, minibatch_size=10, shuffle_batch_per_epoch=True)
    for batch in batches:
        for index, seen in enumerate(batch[Columns.OBS].numpy()):
            found = (batch[Columns.ACTIONS][index].item(), batch[Columns.ACTION_LOGP][index].item())
            assert found == rows[seen.tobytes()]


def test_advantages_are_rllibs_on_each_episode() -> None:
    rng = np.random.default_rng(1)
    rollout = FakeRunner(6, seed=3, full=True, size=SIZE).sample(30)
    values = rng.normal(size=(31, 6)).astype(np.float32)
    finals = rng.normal(size=len(rollout.finals)).astype(np.float32)
    next_values = values[1:].copy()
    next_values[rollout.finals.steps, rollout.finals.envs] = finals
    ended = rollout.terminateds, rollout.truncateds
    found = generalized_advantages(rollout.rewards, values[:-1], next_values, *ended, 0.97, 0.9)
    for b in range(6):
        stops = [*(np.flatnonzero(ended[0][:, b] | ended[1][:, b]) + 1), 30]
        for start, stop in zip([0, *stops], stops, strict=False):
            if start == stop:
                continue
            along = np.append(values[start:stop, b], next_values[stop - 1, b])
            terminated = np.zeros(len(along), bool)
            terminated[-2] = ended[0][stop - 1, b]
            truncated = np.zeros(len(along), bool)
            truncated[-2] = not terminated[-2]
            rewards = np.append(rollout.rewards[start:stop, b], 0.0)
            targets = compute_value_targets(along, rewards, terminated, truncated, 0.97, 0.9)
            assert found[start:stop, b] == pytest.approx((targets - along)[:-1], abs=1e-5)


def test_rows_that_are_no_steps_are_not_learned_from() -> None:
    learner = make(LeanPPOLearner)
    rollout = act(FakeRunner(3, full=True, size=SIZE).sample(10), learner)
    valid = np.ones((10, 3), bool)
    valid[4, 1] = False
    object.__setattr__(rollout, "valid", valid)
    [batch] = learner.minibatches([rollout])[1]
    assert {len(column) for column in batch.values()} == {29}


@pytest.mark.parametrize("shared", [False, True])
def test_what_the_critic_has_just_seen_is_not_computed_again(shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = {"vf_share_layers": shared}
    rollouts = [act(FakeRunner(4, 1, full=True, size=SIZE).sample(20), make(LeanPPOLearner)) for _ in range(2)]
    seen: list[list[int]] = []
    forward = Chain.forward

    def counted(chain: Chain, inputs: Any) -> Any:
        if inputs.shape[1] == SIZE:
            seen[-1].append(len(inputs))
        return forward(chain, inputs)

    monkeypatch.setattr(Chain, "forward", counted)
    learners = []
    for most in (1_024, 10):
        monkeypatch.setattr("trainer.lean_ppo.VALUED", most)
        learners.append(make(KernelPPOLearner, model=model, **A2C))
        for rollout in rollouts:
            seen.append([])
            learn(learners[-1], [rollout])
    assert largest_difference(*learners) < 1e-6
    # 20 steps of 4 environments, and what the last one led to; then the policy alone, where it is not the critic's.
    assert [rows for rows in seen[0] if rows >= 80] == ([84] if shared else [84, 80])
    assert [rows for rows in seen[3] if rows >= 80] == ([80] if shared else [80, 80])


def test_counts_of_updates_without_a_report_are_in_the_next_one() -> None:
    learner, runner = make(LeanPPOLearner), FakeRunner(4, full=True, size=SIZE)
    assert learn(learner, [act(runner.sample(20), learner)], report=False) is None
    results = learn(learner, [act(runner.sample(10), learner)])
    for name in ("num_module_steps_trained", "num_module_steps_trained_lifetime"):
        assert results[DEFAULT_MODULE_ID][name].peek() == 120, name
    assert results[ALL_MODULES]["num_env_steps_trained"].peek() == 120
    assert results[DEFAULT_MODULE_ID]["module_train_batch_size_mean"].peek() == 60
    again = learn(learner, [act(runner.sample(10), learner)])
    assert again[DEFAULT_MODULE_ID]["num_module_steps_trained"].peek() == 40


@pytest.mark.parametrize("kind", [LeanPPOLearner, KernelPPOLearner])
@pytest.mark.parametrize("skip", [False, True])
def test_a_broken_gradient_does_what_is_configured(kind: type, skip: bool) -> None:
    ours, theirs = (make(learner, grad_clip=1.0, use_kl_loss=False) for learner in (kind, Oracle))
    ours.set_state(theirs.get_state())
    for learner in (ours, theirs):
        learner.config.torch_skip_nan_gradients = skip
    before = make(Oracle, grad_clip=1.0, use_kl_loss=False)
    before.set_state(theirs.get_state())
    rollout = act(FakeRunner(4, full=True, size=SIZE).sample(20), theirs)
    whole: Any = rollout.observations
    whole.values[3, 2, 0] = np.nan
    results = learn(ours, [rollout])
    assert results[DEFAULT_MODULE_ID]["total_loss"].peek() != results[DEFAULT_MODULE_ID]["total_loss"].peek()  # NaN
    if skip:  # what the setting says; RLlib's learner steps all the same
        assert largest_difference(ours, before) == 0.0
    else:
        learn(theirs, as_episodes(rollout))
        assert largest_difference(ours, theirs) < 1e-5


@pytest.mark.parametrize("kind", [LeanPPOLearner, KernelPPOLearner])
def test_optimizer_states_are_exchanged_with_rllibs_learner(kind: type) -> None:
    rollout = act(FakeRunner(4, full=True, size=SIZE).sample(20), make(Oracle))
    pairs: dict[str, list[Any]] = {}
    for first, second in ((kind, Oracle), (Oracle, kind)):
        start, other = make(first, use_kl_loss=False), make(second, use_kl_loss=False)
        for _ in range(3):
            learn(start, [rollout] if first is kind else as_episodes(rollout))
        other.set_state(start.get_state())
        assert largest_difference(start, other) == 0.0
        for learner in (start, other):
            learn(learner, [rollout] if isinstance(learner, LeanPPOLearner) else as_episodes(rollout))
        assert largest_difference(start, other) < 1e-6
        groups = [one.get_optimizer(DEFAULT_MODULE_ID).state_dict()["param_groups"] for one in (start, other)]
        assert groups[0] == groups[1]
        pairs[first.__name__] = groups
    assert not pairs[kind.__name__][0][0]["fused"]


def test_a_recurrent_module_is_refused_by_name() -> None:
    config = PPOConfig().rl_module(model_config={"use_lstm": True, "max_seq_len": 4, "lstm_cell_size": 4})
    config.learners(learner_class=LeanPPOLearner)
    spaces = {DEFAULT_MODULE_ID: (gym.spaces.Box(-1, 1, (SIZE,), np.float32), gym.spaces.Discrete(3))}
    with pytest.raises(SettingsError, match=r"without a recurrent state, got .*; set train.fast_path to \"off\""):
        config.build_learner(spaces=spaces)


def test_rllibs_episodes_are_refused_by_name() -> None:
    rollout = act(FakeRunner(4, full=True, size=SIZE).sample(3), make(Oracle))
    with pytest.raises(InputError, match=r"LeanPPOLearner: expected rollouts.*got SingleAgentEpisode; set env_runners"):
        learn(make(LeanPPOLearner), as_episodes(rollout))
