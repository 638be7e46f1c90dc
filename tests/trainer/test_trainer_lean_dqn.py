"""The lean DQN learner against RLlib's own, on the same transitions."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.algorithms.dqn.torch.dqn_torch_learner import DQNTorchLearner
from ray.rllib.core import ALL_MODULES, DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME, TD_ERROR_KEY
from rollout_makers import FakeRunner, as_single_steps, largest_difference, parameters, quick_learners

from trainer.kernel_dqn import KernelDQNLearner
from trainer.lean_dqn import LeanDQNLearner
from trainer.ring_buffer import PrioritizedRingBuffer, RingBuffer
from trainer.transitions import Transitions

__all__ = ["quick_learners"]  # a fixture

SIZE = 6
BATCH = 16


def make(learner_class: type, **training: Any) -> Any:
    config = DQNConfig().debugging(seed=5).rl_module(model_config={"fcnet_hiddens": [16]})
    config.training(**{"lr": 1e-2, "train_batch_size_per_learner": BATCH, **training})
    config.learners(learner_class=learner_class)
    spaces = {DEFAULT_MODULE_ID: (gym.spaces.Box(-1, 1, (SIZE,), np.float32), gym.spaces.Discrete(3))}
    return config.build_learner(spaces=spaces)


def draw(count: int, kind: type[RingBuffer] = RingBuffer, **how: Any) -> Transitions:
    buffer = kind(500)
    buffer.rng = np.random.default_rng(8)
    runner = FakeRunner(5, full=True, size=SIZE)
    for _ in range(6):
        buffer.add([runner.sample(8)])
    errors = np.random.default_rng(9).exponential(size=len(buffer)).astype(np.float32)
    buffer.update_priorities(np.arange(len(buffer)), errors)
    [batch] = buffer.sample(count, gamma=0.9, **how)
    return batch


def learn(learner: Any, episodes: list[Any], steps: int = 0, **how: Any) -> dict[str, Any]:
    found: dict[str, Any] = learner.update(
        training_data=TrainingData(episodes=episodes), timesteps={NUM_ENV_STEPS_SAMPLED_LIFETIME: steps}, **how
    )
    return found


@pytest.mark.parametrize("learner", [LeanDQNLearner, KernelDQNLearner])
@pytest.mark.parametrize(
    ("training", "kind", "drawing"),
    [
        ({"double_q": False, "dueling": False}, RingBuffer, {}),
        ({"double_q": True, "dueling": False, "td_error_loss_fn": "mse", "grad_clip": None}, RingBuffer, {"n_step": 3}),
        ({"double_q": False, "dueling": True, "tau": 0.1}, RingBuffer, {"n_step": (1, 4)}),
        (
            {"target_network_update_freq": 60, "lr": [[0, 1e-2], [200, 1e-4]]},
            PrioritizedRingBuffer,
            {"n_step": 3, "beta": 0.4},
        ),
        ({"grad_clip": 0.01, "grad_clip_by": "value", "adam_epsilon": 1e-4}, RingBuffer, {}),
    ],
    ids=["plain", "double", "dueling", "prioritised", "clip by value"],
)
def test_updates_are_those_of_rllib(
    training: dict[str, Any], kind: type[RingBuffer], drawing: dict[str, Any], learner: type
) -> None:
    training = {"gamma": 0.9, "target_network_update_freq": 100, **training}
    if learner is KernelDQNLearner:  # which clips by the norm alone
        training.pop("grad_clip_by", None)
    ours, theirs = make(learner, **training), make(DQNTorchLearner, **training)
    ours.set_state(theirs.get_state())
    start = parameters(theirs)
    group = draw(4 * BATCH, kind, **drawing)
    assert kind is RingBuffer or group.weights.min() < 0.9
    for steps in (0, 50, 100, 150):
        # Four minibatches in one call, against four calls of RLlib's.
        our = learn(ours, [group], steps, minibatch_size=BATCH)[DEFAULT_MODULE_ID]
        errors = []
        for part in range(4):
            rows = as_single_steps(group[part * BATCH : (part + 1) * BATCH])
            their = learn(theirs, rows, steps)[DEFAULT_MODULE_ID]
            errors.append(np.concatenate([np.asarray(error) for error in their[TD_ERROR_KEY].peek()]))
        for name in ("total_loss", "qf_loss", "qf_mean", "qf_max", "td_error_mean"):
            assert float(our[name].peek()) == pytest.approx(float(their[name].peek()), abs=1e-5, rel=1e-5), name
        assert ours.td_errors() == pytest.approx(np.concatenate(errors), abs=1e-5)
        assert largest_difference(ours, theirs) < 1e-5  # target networks as well
    moved = {name: np.abs(value - start[name]).max() for name, value in parameters(ours).items()}
    assert moved["encoder.net.mlp.0.weight"] > 1e-3
    assert moved["_target_encoder.net.mlp.0.weight"] > 1e-3


def test_distributional_updates_are_those_of_rllib() -> None:
    # From the same state each: the projection onto the atoms has steps, over which a last bit may fall.
    training = {"num_atoms": 7, "v_min": -3.0, "v_max": 3.0, "grad_clip": 0.2}
    ours, theirs = make(LeanDQNLearner, **training), make(DQNTorchLearner, **training)
    for part in range(4):
        batch = draw((part + 1) * BATCH, PrioritizedRingBuffer, beta=0.7)[part * BATCH :]
        ours.set_state({**theirs.get_state(), "weights_seq_no": 0})
        learn(ours, [batch])
        learn(theirs, as_single_steps(batch))
        assert largest_difference(ours, theirs) < 1e-6


@pytest.mark.parametrize("kind", [LeanDQNLearner, KernelDQNLearner])
def test_targets_are_updated_within_a_group_as_configured(kind: type) -> None:
    learner = make(kind, target_network_update_freq=0, tau=0.5)
    once = make(kind, target_network_update_freq=100)
    group = draw(8 * BATCH)
    found = learn(learner, [group], 10, minibatch_size=BATCH)
    assert found[DEFAULT_MODULE_ID]["num_target_updates"].peek() == 8
    assert "num_target_updates" not in learn(once, [group], 99, minibatch_size=BATCH)[DEFAULT_MODULE_ID]
    assert learn(once, [group], 100, minibatch_size=BATCH)[DEFAULT_MODULE_ID]["num_target_updates"].peek() == 1
    assert found[DEFAULT_MODULE_ID]["num_module_steps_trained"].peek() == 8 * BATCH


def test_metrics_of_several_updates_are_reported_once() -> None:
    learner = make(LeanDQNLearner)
    group = draw(2 * BATCH)
    for _ in range(3):
        assert learn(learner, [group], minibatch_size=BATCH, report=False) is None
    found = learn(learner, [group], minibatch_size=BATCH)
    assert found[ALL_MODULES]["num_env_steps_trained"].peek() == 8 * BATCH
    assert found[DEFAULT_MODULE_ID]["weights_seq_no"].peek() == 4


@pytest.mark.parametrize("kind", [LeanDQNLearner, KernelDQNLearner])
def test_groups_larger_than_are_gathered_at_once(kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, pieces = make(kind), make(kind)
    group = draw(10 * BATCH)
    learn(whole, [group], minibatch_size=BATCH)
    monkeypatch.setattr("trainer.lean_dqn._GATHERED", 3 * BATCH)
    learn(pieces, [group], minibatch_size=BATCH)
    assert largest_difference(whole, pieces) == 0.0


@pytest.mark.parametrize("kind", [LeanDQNLearner, KernelDQNLearner])
def test_states_are_exchanged_with_rllibs_learner(kind: type) -> None:
    group = draw(BATCH)
    for first, second in ((kind, DQNTorchLearner), (DQNTorchLearner, kind)):
        start, other = make(first), make(second)
        for learner in (start, start, other):
            if learner is other:
                other.set_state(start.get_state())
            learn(learner, [group] if isinstance(learner, LeanDQNLearner) else as_single_steps(group))
        learn(start, [group] if isinstance(start, LeanDQNLearner) else as_single_steps(group))
        assert largest_difference(start, other) < 1e-6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_learns_the_same() -> None:
    here, there = make(LeanDQNLearner), make(LeanDQNLearner)
    there._device = torch.device("cuda")
    there.module.foreach_module(lambda _, module: module.to("cuda"))
    group = draw(BATCH)
    for learner in (here, there):
        learn(learner, [group])
    assert largest_difference(here, there) < 1e-4
