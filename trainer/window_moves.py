"""Moving a run's window while it trains: the living runners are told, the others ask when they begin."""

from __future__ import annotations

from typing import Any

from env.scaler import Scaler
from env.settings import EnvSettings
from trainer.callbacks import driver_callbacks
from trainer.environments import follow_window
from trainer.settings import EnvConfig
from trainer.window_store import WindowStore
from trainer.windows import Window


def move_window(algorithm: Any, store: WindowStore, window: Window, *, timeout_s: float = 30.0) -> None:
    """Make a window the current one of its split, and have every runner of the algorithm trade it from now on.

    An episode ends on the window that it began on, so those in progress are abandoned: they have a start on record and
    no end. Learners and replay buffers follow when the first rollout names the new window; rows that left it leave the
    buffer. A runner that does not answer is being replaced, and the new one asks for the current window.

    Args:
        algorithm: A built algorithm with ``EventCallbacks`` and our environment.
        store: The run's window store.
        window: The window.
        timeout_s: How long to wait for the runners.

    Raises:
        OutboxError: the algorithm has no ``EventCallbacks``.
    """
    config = EnvConfig.model_validate(dict(algorithm.config.env_config))
    window.scale(Scaler.from_dict(config.scaler), EnvSettings.from_mapping(config.settings))
    driver_callbacks(algorithm).publish(window.opened)
    store.put(window)
    for group in (algorithm.env_runner_group, algorithm.eval_env_runner_group):
        if group is not None:
            group.foreach_env_runner(follow_window, timeout_seconds=timeout_s)
