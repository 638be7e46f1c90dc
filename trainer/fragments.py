"""An episode of RLlib comes in fragments, one a ``sample()``: what they hold, added up as they come."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from trainer.episode_events import Outcome


class Taken:
    """Rewards, actions and policy versions of an episode so far. Copied out: a learner may change a fragment."""

    def __init__(self) -> None:
        self._total_reward = 0.0
        self._actions: list[NDArray[Any]] = []
        self._versions: list[NDArray[np.int64]] = []

    def add(self, fragment: Any) -> None:
        """Add the episode's next fragment."""
        if not len(fragment):
            return
        self._total_reward += float(fragment.get_return())
        self._actions.append(np.array(fragment.get_actions()))
        self._versions.append(_versions(fragment))

    def versions(self, last: Any) -> NDArray[np.int64]:
        """Policy versions of the whole episode, of which this is the last fragment."""
        return np.concatenate([*self._versions, _versions(last)])

    def outcome(self, last: Any) -> Outcome:
        """What RLlib knows of the episode, whose last fragment says how it ended."""
        actions, versions = (
            np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64) for parts in (self._actions, self._versions)
        )
        return Outcome(
            steps=len(actions),
            total_reward=self._total_reward,
            actions=actions,
            policy_versions=versions,
            terminated=bool(last.is_terminated),
            truncated=bool(last.is_truncated),
        )


def _versions(fragment: Any) -> NDArray[np.int64]:
    # A random policy, as in RLlib's own warm-ups, has no version.
    if not len(fragment) or WEIGHTS_SEQ_NO not in fragment.extra_model_outputs:
        return np.zeros(0, dtype=np.int64)
    versions: NDArray[np.int64] = np.array(fragment.get_extra_model_outputs(WEIGHTS_SEQ_NO), dtype=np.int64)
    return versions
