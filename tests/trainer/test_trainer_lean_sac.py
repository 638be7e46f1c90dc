"""The lean SAC learner against RLlib's own, on the same transitions and the same random numbers."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from ray.rllib.algorithms.sac import SACConfig
from ray.rllib.algorithms.sac.torch.sac_torch_learner import SACTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME, TD_ERROR_KEY
from rollout_makers import FakeRunner, as_single_steps, largest_difference, parameters, quick_learners

from trainer.lean_sac import LeanSACLearner
from trainer.ring_buffer import PrioritizedRingBuffer

__all__ = ["quick_learners"]  # a fixture

SIZE = 6
BATCH = 16


def make(learner_class: type, continuous: bool, **training: Any) -> Any:
    config = SACConfig().debugging(seed=5).rl_module(model_config={"fcnet_hiddens": [16], "head_fcnet_hiddens": []})
    config.training(**{"actor_lr": 1e-3, "critic_lr": 2e-3, "alpha_lr": 3e-3, "gamma": 0.9, **training})
    config.learners(learner_class=learner_class)
    actions = gym.spaces.Box(-1, 1, (2,)) if continuous else gym.spaces.Discrete(3)
    spaces = {DEFAULT_MODULE_ID: (gym.spaces.Box(-1, 1, (SIZE,), np.float32), actions)}
    return config.build_learner(spaces=spaces)


def learn(learner: Any, episodes: list[Any], steps: int = 0, **how: Any) -> Any:
    timesteps = {NUM_ENV_STEPS_SAMPLED_LIFETIME: steps}
    return learner.update(training_data=TrainingData(episodes=episodes), timesteps=timesteps, **how)[DEFAULT_MODULE_ID]


@pytest.mark.parametrize(
    ("continuous", "training"),
    [
        (False, {}),
        (True, {}),
        (True, {"twin_q": False, "grad_clip": 0.1, "target_network_update_freq": 60, "tau": 1.0}),
        (False, {"grad_clip": None, "target_entropy": -0.4, "initial_alpha": 0.3}),
    ],
    ids=["discrete", "continuous", "one critic", "entropy"],
)
def test_updates_are_those_of_rllib(continuous: bool, training: dict[str, Any]) -> None:
    ours, theirs = make(LeanSACLearner, continuous, **training), make(SACTorchLearner, continuous, **training)
    ours.set_state(theirs.get_state())
    start = parameters(theirs)
    buffer = PrioritizedRingBuffer(500)
    buffer.rng = np.random.default_rng(8)
    runner = FakeRunner(5, full=True, size=SIZE, continuous=continuous, actions=2 + (not continuous))
    for _ in range(6):
        buffer.add([runner.sample(8)])
    [group] = buffer.sample(4 * BATCH, n_step=2, gamma=0.9)
    for steps in (0, 50, 100):
        torch.manual_seed(steps)
        our = learn(ours, [group], steps, minibatch_size=BATCH)
        torch.manual_seed(steps)
        errors = []
        for part in range(4):
            their = learn(theirs, as_single_steps(group[part * BATCH : (part + 1) * BATCH]), steps)
            errors.append(np.concatenate([np.asarray(error) for error in their[TD_ERROR_KEY].peek()]))
        for name in ("total_loss", "policy_loss", "qf_loss", "alpha_loss", "alpha_value", "td_error_mean"):
            assert float(our[name].peek()) == pytest.approx(float(their[name].peek()), abs=1e-5, rel=1e-5), name
        assert ours.td_errors() == pytest.approx(np.concatenate(errors), abs=1e-5)
        assert largest_difference(ours, theirs) < 1e-5
    moved = {name: float(np.abs(value - start[name]).max()) for name, value in parameters(ours).items()}
    assert moved["pi_encoder.net.mlp.0.weight"] > 1e-4
    assert max(moved[name] for name in moved if name.startswith("target_")) > 1e-6
    assert ours.curr_log_alpha[DEFAULT_MODULE_ID].item() == pytest.approx(
        theirs.curr_log_alpha[DEFAULT_MODULE_ID].item(), abs=1e-5
    )
