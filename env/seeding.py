"""The random streams that draw the starts of episodes."""

from __future__ import annotations

import numpy as np
from gymnasium.utils.seeding import np_random


class Stream:
    """The stream of one environment: a generator, its name, and how many starts were drawn from it.

    Args:
        source: Keeps the environment to a stream of its own: seeds passed to ``reset`` are then ignored. None begins
            one from the operating system's entropy, and again at each seed.

    Attributes:
        rng: The generator.
        seed: What it was begun from; -1 where that is no single number, as gymnasium has it.
    """

    def __init__(self, source: np.random.SeedSequence | None = None) -> None:
        self._source = source
        self._draws = 0
        if source is None:
            self.rng, self.seed = np_random()
            self._name = str(self.seed)
        else:
            self.rng, self.seed = np.random.default_rng(source), -1
            parts = (np.ravel(np.array(source.entropy, dtype=object)), source.spawn_key)
            self._name = "/".join(",".join(str(number) for number in part) for part in parts if len(part))

    def begin(self, seed: int | None) -> None:
        """Begin again from a seed, unless it is None or the stream keeps to its source."""
        if seed is not None and self._source is None:
            self.rng, self.seed = np_random(int(seed))
            self._name, self._draws = str(seed), 0

    def draw(self) -> str:
        """Count one reset and return what draws its start: ``entropy/spawn key#number of the reset``."""
        self._draws += 1
        return f"{self._name}#{self._draws - 1}"
