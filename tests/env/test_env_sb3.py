"""Stable-Baselines3 takes every kind of action and observation."""

from __future__ import annotations

import warnings

import pytest
from env_kinds import KINDS, market, settings_of

from env.trading_env import TradingEnv


@pytest.mark.parametrize("kind", KINDS)
def test_stable_baselines3_checker_is_green(kind):
    from stable_baselines3.common.env_checker import check_env

    settings = settings_of(kind)
    env = TradingEnv(market(settings), settings, render_mode="rgb_array")
    with warnings.catch_warnings():
        # Advice, not an error: it prefers boxes within -1..1, which weights at leverage 1 are and the others cannot be.
        warnings.filterwarnings("ignore", message="We recommend you to use a symmetric and normalized Box action space")
        check_env(env, warn=True)
