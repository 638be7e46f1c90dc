"""RLlib's algorithms with another ``training_step``: several rounds of sampling and learning, reported once.

Set by ``PPOConfig(algo_class=FastPPO)`` and so on, with a lean learner and a batched runner; ``trainer.fast_path`` does
all of it. What is reported has RLlib's names, and settings are RLlib's:

- ``reporting(min_sample_timesteps_per_iteration)``: rounds are run until so many steps are sampled; at least one.
- ``training_intensity``: steps replayed to steps sampled, in RLlib's reckoning, which counts one runner more than
  there are. A round is ``rollout_fragment_length`` steps in each environment, and then all updates that it is due;
  without it one update a round.
- ``replay_buffer_config``: EpisodeReplayBuffer and PrioritizedEpisodeReplayBuffer stand for our ring buffers.
- ``learners(learner_config_dict={"sample_while_learning": True})``: the next round is sampled with the weights from
  before the update, while that runs.
- ``learners(learner_config_dict={"updates_per_call": 32})``: minibatches drawn from the buffer at once. Priorities
  are told to it after each such group; target networks are updated within.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from ray.rllib.algorithms.appo.appo import APPO
from ray.rllib.algorithms.dqn.dqn import DQN
from ray.rllib.algorithms.impala.impala import IMPALA
from ray.rllib.algorithms.ppo.ppo import PPO
from ray.rllib.algorithms.sac.sac import SAC
from ray.rllib.utils.metrics import (
    REPLAY_BUFFER_ADD_DATA_TIMER,
    REPLAY_BUFFER_SAMPLE_TIMER,
    REPLAY_BUFFER_UPDATE_PRIOS_TIMER,
)

from trainer.observation_source import current_first_rows
from trainer.ring_buffer import PrioritizedRingBuffer, RingBuffer
from trainer.rllib_private import OwnReplayBuffer, replay_weights
from trainer.rollout import Rollout
from trainer.rounds import Moment, Rounds

UPDATES_PER_CALL = 32
"""Minibatches of one learner call, where ``learner_config_dict`` does not say."""


class _InRounds:
    """The ``training_step``; what a round samples and learns is the algorithm's."""

    config: Any

    def training_step(self) -> None:
        """Sample and learn in rounds, then report."""
        rounds = Rounds(self)
        overlap = bool(self.config.learner_config_dict.get("sample_while_learning"))
        # The update is what goes to a thread: callbacks of a local runner keep to the thread that made them.
        with ThreadPoolExecutor(1, thread_name_prefix="update") as threads:
            taken = self.sample_round(rounds)
            while taken:
                moment = rounds.now
                if moment.is_last or not overlap:
                    self.learn_round(rounds, taken, moment)
                    rounds.sync_weights()
                    # No rollouts: all runners have failed. RLlib restores them and calls again.
                    taken = [] if moment.is_last else self.sample_round(rounds)
                else:
                    update = threads.submit(self.learn_round, rounds, taken, moment)
                    taken = self.sample_round(rounds)
                    update.result()
                    rounds.sync_weights()
        rounds.report()

    def sample_round(self, rounds: Rounds) -> list[Rollout]:
        """Sample what one round learns from."""
        raise NotImplementedError

    def learn_round(self, rounds: Rounds, taken: list[Rollout], moment: Moment) -> None:
        """Make the updates of a round."""
        raise NotImplementedError


class FastPPO(_InRounds, PPO):
    """PPO, and A2C by its settings. A round is one train batch."""

    def sample_round(self, rounds: Rounds) -> list[Rollout]:
        """One train batch."""
        return rounds.sample(self.config.total_train_batch_size)

    def learn_round(self, rounds: Rounds, taken: list[Rollout], moment: Moment) -> None:
        """All epochs over the train batch."""
        how = {
            "num_epochs": self.config.num_epochs,
            "minibatch_size": self.config.minibatch_size,
            "shuffle_batch_per_epoch": self.config.shuffle_batch_per_epoch,
        }
        if self.config.num_learners > 1:
            # Learners wait for each other in every step, so that they have to make as many.
            parts = zip(*(one.shards(self.config.num_learners) for one in taken), strict=True)
            least = min(sum(map(len, part)) for part in parts)
            size = self.config.minibatch_size or least
            how["num_total_minibatches"] = math.ceil(self.config.num_epochs * least / size)
        rounds.learn(taken, moment, report=moment.is_last, **how)


class _OneBatch(_InRounds):
    """A round learns from one train batch, of whichever runners have it ready: remote ones sample all the time."""

    def sample_round(self, rounds: Rounds) -> list[Rollout]:
        """One train batch."""
        return rounds.sample_ready(self.config.total_train_batch_size)

    def learn_round(self, rounds: Rounds, taken: list[Rollout], moment: Moment) -> None:
        """The learner's passes over the train batch."""
        rounds.learn(taken, moment, report=moment.is_last)


class FastIMPALA(_OneBatch, IMPALA):
    """IMPALA with a learner in this process."""


class FastAPPO(_OneBatch, APPO):
    """APPO with a learner in this process."""


class _Replaying(_InRounds, OwnReplayBuffer):
    """Off-policy: a round adds its rollouts to the buffer and makes the updates that they are due."""

    local_replay_buffer: RingBuffer

    def make_replay_buffer(self, settings: Mapping[str, Any]) -> RingBuffer:
        """The ring buffer that stands for one of RLlib's."""
        if settings["type"] == "PrioritizedEpisodeReplayBuffer":
            buffer: RingBuffer = PrioritizedRingBuffer(settings["capacity"], settings["alpha"])
        else:
            buffer = RingBuffer(settings["capacity"])
        buffer.rng = np.random.default_rng(self.config.seed)
        return buffer

    def sample_round(self, rounds: Rounds) -> list[Rollout]:
        """One fragment of each runner; several where RLlib's ratio has more than one to an update."""
        taken: list[Rollout] = []
        for _ in range(replay_weights(self.config)[0]):
            taken += rounds.sample()
        return taken

    def learn_round(self, rounds: Rounds, taken: list[Rollout], moment: Moment) -> None:
        """Add to the buffer; draw and learn, in groups of updates."""
        buffer = self.local_replay_buffer
        with rounds.timed(REPLAY_BUFFER_ADD_DATA_TIMER):
            before = buffer.window_id
            buffer.add(taken)
            if buffer.window_id != before:
                buffer.forget_before(current_first_rows(self.config.env_config))
        if not len(buffer):
            return  # none of it is in the window any more
        if moment.lifetime < self.config.num_steps_sampled_before_learning_starts:
            return
        most = int(self.config.learner_config_dict.get("updates_per_call", UPDATES_PER_CALL))
        left = replay_weights(self.config)[1]
        while left:
            updates = min(left, most)
            left -= updates
            self._learn_group(rounds, moment, updates, is_last=not left)

    def _learn_group(self, rounds: Rounds, moment: Moment, updates: int, is_last: bool) -> None:
        buffer, config = self.local_replay_buffer, self.config
        with rounds.timed(REPLAY_BUFFER_SAMPLE_TIMER):
            drawn = buffer.sample(
                updates * config.total_train_batch_size,
                n_step=config.n_step,
                gamma=config.gamma,
                beta=config.replay_buffer_config.get("beta"),
            )
        report = moment.is_last and is_last
        rounds.learn(drawn, moment, report=report, minibatch_size=config.train_batch_size_per_learner)
        if isinstance(buffer, PrioritizedRingBuffer):
            with rounds.timed(REPLAY_BUFFER_UPDATE_PRIOS_TIMER):
                buffer.update_priorities(drawn[0].slots, rounds.td_errors())


class FastDQN(_Replaying, DQN):
    """DQN, with all its options."""


class FastSAC(_Replaying, SAC):
    """SAC, for discrete actions and continuous ones."""
