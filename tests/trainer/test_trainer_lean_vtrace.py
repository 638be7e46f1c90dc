"""The lean IMPALA and APPO learners against RLlib's own, on the same rollouts."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.algorithms.appo import APPOConfig
from ray.rllib.algorithms.appo.torch.appo_torch_learner import APPOTorchLearner
from ray.rllib.algorithms.impala import IMPALAConfig
from ray.rllib.algorithms.impala.torch.impala_torch_learner import IMPALATorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME, NUM_ENV_STEPS_TRAINED_LIFETIME
from rollout_makers import FakeRunner, act, as_episodes, largest_difference, parameters, quick_learners

from trainer.lean_vtrace import LeanAPPOLearner, LeanIMPALALearner
from trainer.rollout import Rollout

__all__ = ["quick_learners"]  # a fixture

SIZE, FRAGMENT = 6, 20


class OracleIMPALA(IMPALATorchLearner):
    """RLlib's, which updates when it is called and not when its thread comes to it."""

    update = TorchLearner.update


class OracleAPPO(APPOTorchLearner):
    update = TorchLearner.update


KINDS: dict[str, tuple[type[AlgorithmConfig], type, type]] = {
    "IMPALA": (IMPALAConfig, LeanIMPALALearner, OracleIMPALA),
    "APPO": (APPOConfig, LeanAPPOLearner, OracleAPPO),
}


def make(config_class: type[AlgorithmConfig], learner_class: type, continuous: bool, **training: Any) -> Any:
    config = config_class().debugging(seed=5).env_runners(rollout_fragment_length=FRAGMENT)
    config.rl_module(model_config={"fcnet_hiddens": [16], "vf_share_layers": False}).learners(num_learners=0)
    config.training(**{"lr": 1e-3, "train_batch_size_per_learner": 80, **training}).learners(
        learner_class=learner_class
    )
    actions = gym.spaces.Box(-1, 1, (2,)) if continuous else gym.spaces.Discrete(3)
    spaces = {DEFAULT_MODULE_ID: (gym.spaces.Box(-1, 1, (SIZE,), np.float32), actions)}
    return config.build_learner(spaces=spaces)


@pytest.mark.parametrize("continuous", [False, True])
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize(
    "training",
    [{}, {"entropy_coeff": [[0, 0.1], [400, 0.0]], "grad_clip": 0.1, "vtrace_clip_rho_threshold": 0.9}],
    ids=["defaults", "schedules and clips"],
)
def test_updates_are_those_of_rllib(name: str, continuous: bool, training: dict[str, Any]) -> None:
    config_class, lean, oracle = KINDS[name]
    if name == "APPO":
        training = {**training, "circular_buffer_iterations_per_batch": 1, "circular_buffer_num_batches": 1}
        training |= {"use_kl_loss": True, "kl_coeff": 1.0, "kl_target": 1e-4, "target_network_update_freq": 2}
    ours, theirs = (make(config_class, kind, continuous, **training) for kind in (lean, oracle))
    ours.set_state(theirs.get_state())
    assert largest_difference(ours, theirs) == 0.0
    start = parameters(theirs)
    runner = FakeRunner(4, 1, full=True, size=SIZE, continuous=continuous, actions=2 + (not continuous))
    ended = 0
    for update in range(5):
        rollout = act(runner.sample(FRAGMENT), theirs)
        ended += len(rollout.finals)
        results = []
        # Environment after environment, as the lean learner has them.
        pieces = sorted(as_episodes(rollout), key=lambda episode: _place(rollout, episode))
        for learner, given in ((ours, [rollout]), (theirs, pieces)):
            timesteps = {NUM_ENV_STEPS_SAMPLED_LIFETIME: 80 * update, NUM_ENV_STEPS_TRAINED_LIFETIME: 80 * update}
            results.append(learner.update(training_data=TrainingData(episodes=given), timesteps=timesteps))
        our, their = (result[DEFAULT_MODULE_ID] for result in results)
        names = {"total_loss", "entropy"} | ({"mean_kl_loss", "curr_kl_coeff"} if name == "APPO" else {"pi_loss"})
        for metric in names & their.keys():
            assert float(our[metric].peek()) == pytest.approx(float(their[metric].peek()), abs=1e-5, rel=1e-5), metric
        assert largest_difference(ours, theirs) < 1e-5
    assert ended > 3
    assert max(np.abs(value - start[key]).max() for key, value in parameters(ours).items()) > 1e-3
    for learner in (ours, theirs):
        learner.shutdown()


def _place(rollout: Rollout, episode: Any) -> tuple[int, int]:
    """Environment and step at which a piece of an episode begins."""
    seen: Any = rollout.observations
    first = np.asarray(episode.get_observations(0))
    [(step, env)] = np.argwhere((seen.values[:-1] == first).all(axis=-1)).tolist()
    return env, step


def test_appo_learns_from_a_batch_as_often_as_its_buffer_would() -> None:
    learner = make(APPOConfig, LeanAPPOLearner, False, circular_buffer_iterations_per_batch=3)
    rollout = act(FakeRunner(4, 1, full=True, size=SIZE).sample(FRAGMENT), learner)
    count, batches = learner.minibatches([rollout])
    assert count == len(list(batches)) == 3
    learner.shutdown()


def test_steps_that_were_none_are_masked() -> None:
    learner = make(IMPALAConfig, LeanIMPALALearner, False)
    rollout = act(FakeRunner(4, 1, full=True, size=SIZE).sample(FRAGMENT), learner)
    valid = np.ones((FRAGMENT, 4), dtype=np.bool_)
    valid[3, 1] = valid[7, 2] = False
    object.__setattr__(rollout, "valid", valid)
    _, batches = learner.minibatches([rollout])
    [batch] = list(batches)
    assert int(batch[Columns.LOSS_MASK].sum()) == FRAGMENT * 4 - 2 == len(rollout)
    assert not (batch[Columns.TERMINATEDS] & ~batch[Columns.LOSS_MASK]).any()
    learner.shutdown()
