"""Feature arrays with room after their last row, so that a window can be copied together with what follows it."""

from __future__ import annotations

from pickle import PickleBuffer
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOM = 5
"""Rows of room: an observation has at most 5 numbers after its window for each number of a row."""


def with_room(features: NDArray[Any]) -> NDArray[np.float32]:
    """Return a float32 copy (N, F) of features that has room after its last row."""
    roomy = np.zeros((len(features) + ROOM, features.shape[1]), dtype=np.float32)
    roomy[: len(features)] = features
    return roomy[: len(features)]


def room_of(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return features with their room, (N + ROOM, F): the array behind them, or a copy where that has none."""
    roomy = features.base
    if isinstance(roomy, np.ndarray) and roomy.shape == (len(features) + ROOM, features.shape[1]):
        return roomy
    return room_of(with_room(features))


def without_room(roomy: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the features (N, F) of an array that has room, (N + ROOM, F), so that ``room_of`` finds it again."""
    # The base of a view is what owns the memory, which is not the array itself if that was unpickled: through a plain
    # buffer it is. (Of a memoryview numpy would take what that looks at.)
    memory: Any = roomy
    buffer: Any = PickleBuffer(memory)
    whole: NDArray[np.float32] = np.ndarray(roomy.shape, roomy.dtype, buffer=buffer)
    return whole[: len(whole) - ROOM]
