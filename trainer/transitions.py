"""What a replay buffer gives a learner: transitions as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from trainer.rollout import Observations


@dataclass
class Transitions:
    """n transitions (o, a, sum of γ^i r, o') of up to n steps each, as a learner takes them.

    Attributes:
        observations: o, n of them.
        next_observations: o', n of them.
        actions: (n, …), as the policy gave them.
        rewards: (n,) float32, discounted sum over the steps of the transition.
        terminated: (n,) bool, whether o' is terminal.
        n_step: (n,) float32, steps that the transition really spans.
        weights: (n,) float32, importance weights; ones where sampling is uniform.
        slots: (n,) int64, where they lie in the buffer; for ``update_priorities``.
    """

    observations: Observations
    next_observations: Observations
    actions: NDArray[Any]
    rewards: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    n_step: NDArray[np.float32]
    weights: NDArray[np.float32]
    slots: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.slots)

    def __getitem__(self, part: slice) -> Self:
        """The transitions of a slice, as views."""
        return type(self)(
            self.observations.at(part),
            self.next_observations.at(part),
            self.actions[part],
            self.rewards[part],
            self.terminated[part],
            self.n_step[part],
            self.weights[part],
            self.slots[part],
        )

    def shards(self, count: int) -> list[Self]:
        """Dealt out to ``count`` learners, as views in their order."""
        borders = np.linspace(0, len(self), count + 1).astype(int)
        return [self[first:last] for first, last in pairwise(borders.tolist())]
