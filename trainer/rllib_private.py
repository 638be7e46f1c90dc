"""Everything of RLlib that is not public, in one place. A test fails by name when a new Ray changes it."""

from __future__ import annotations

from typing import Any

TESTED_RAY = "2.60.0"


def runner_callbacks(env_runner: Any) -> list[Any]:
    """The callback objects of an env runner: RLlib has no public way from a runner to them."""
    callbacks: list[Any] = env_runner._callbacks
    return callbacks
