"""The market model: bars as arrays, exact accounting, and two Gymnasium faces. numpy and gymnasium alone."""

from __future__ import annotations

ENV_ID = "millrace/Trading-v0"


def register() -> None:
    """Make ``gymnasium.make("millrace/Trading-v0", data=…)`` and ``make_vec`` work. A second call changes nothing."""
    import gymnasium

    if ENV_ID not in gymnasium.registry:
        gymnasium.register(
            id=ENV_ID,
            entry_point="env.trading_env:TradingEnv",
            vector_entry_point="env.vector_env:TradingVectorEnv",
        )
