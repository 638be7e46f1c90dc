"""How many threads this process computes on: torch and numpy's BLAS each have a pool of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits


@contextmanager
def computing_on(threads: int) -> Iterator[None]:
    """Meanwhile compute on so many threads, in all of this process.

    Threads of small products wait for one another: where cores are busy, two take many times as long as one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)
