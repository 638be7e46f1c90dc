"""Compiling ahead: once in one process, so that those started next find the machine code on disk."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from env import kernel
from env.bars import SymbolBars
from env.compiled import is_on_disk
from env.market_data import MarketData
from env.market_model import MarketModel
from env.settings import EnvSettings

_MINUTE = 60_000_000


def compile_ahead(say: Callable[[str], None]) -> None:
    """Have all compiled code of the environments on disk, where it is not there yet.

    Processes that start together would otherwise each compile it, at the same time, for as long as all of them take.

    Args:
        say: Gets a line before and after, where there is something to compile.
    """
    entries: list[Callable[..., Any]] = [kernel.step_one, kernel.step_choice, kernel.step_all]
    if all(is_on_disk(one) for one in entries):
        return
    say("compiling the market model for this machine, which is done once")
    begin = time.monotonic()
    ts = np.arange(8, dtype=np.int64) * _MINUTE
    prices = np.linspace(100.0, 101.0, 8)
    data = MarketData([SymbolBars("A", 0, ts, ts + _MINUTE, prices, prices, prices, prices, np.ones(8))])
    for actions, num_envs in (("targets", None), ("targets", 1), ("weights", None)):
        settings = EnvSettings(window=1, episode_length=2, actions=actions)
        model = MarketModel(data, settings, None, num_envs, [np.random.default_rng(0)])
        model.reset([0])
        model.observations()
        chosen = 1 if actions == "targets" else np.array([0.5])
        model.step(chosen if num_envs is None else np.array([1]))
        model.episode_record(0)
    say(f"compiled in {time.monotonic() - begin:.0f} s")
