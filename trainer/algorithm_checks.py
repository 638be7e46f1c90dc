"""What an algorithm cannot do with these settings, said before anything is started."""

from __future__ import annotations

from typing import Any

from gymnasium.spaces import Box, Discrete, MultiDiscrete, Space

from env.settings import EnvSettings
from env.spaces import action_space
from schemas.errors import SettingsError
from trainer.algorithm import new_config
from trainer.algorithm_defaults import NEVER_BY_ITSELF
from trainer.models import use_model
from trainer.offline_data import check_recording
from trainer.settings import AlgorithmSettings, DataSettings

_ALL = (Discrete, MultiDiscrete, Box)

_TAKES: dict[str, tuple[type[Space[Any]], ...]] = {"CQL": (Box,), "DQN": (Discrete,), "SAC": (Discrete, Box)}
"""Action spaces that an algorithm can learn; one that is not listed learns all."""

_WORDS = {Discrete: "one choice", MultiDiscrete: "a choice per symbol", Box: "numbers"}

OFFLINE = ("BC", "MARWIL")
"""Algorithms that learn from recorded episodes."""


def check_algorithm(algorithm: AlgorithmSettings, env: EnvSettings, data: DataSettings) -> None:
    """Check the algorithm's settings, and that they go together with those of the environment and the data.

    Raises:
        SettingsError: an unknown algorithm, method, argument or model; actions that the algorithm cannot learn; an
            evaluation in training without bars for it; a recording of another environment.
        InputError: there is no recording to learn from.
    """
    config = new_config(algorithm)
    space = action_space(env, symbols=2 if env.portfolio else 1)
    taken = _TAKES.get(algorithm.name, _ALL)
    if type(space) not in taken:
        raise SettingsError(
            f"algorithm.name {algorithm.name!r}: expected actions of {' or '.join(_WORDS[kind] for kind in taken)} "
            f"({', '.join(kind.__name__ for kind in taken)}), got {_WORDS[type(space)]} ({type(space).__name__}) from "
            f"{_because(env)}; choose {_instead(algorithm.name, type(space), env)}"
        )
    use_model(config, algorithm.name, env)
    interval = config.evaluation_interval or NEVER_BY_ITSELF
    if interval < NEVER_BY_ITSELF and not data.validation_fraction:
        raise SettingsError(
            f"algorithm.evaluation.evaluation_interval {interval}: expected data.validation_fraction above 0, got 0; "
            "in training the validation split is traded, since the test is kept for the end"
        )
    if algorithm.name in OFFLINE:
        if config.min_sample_timesteps_per_iteration:
            raise SettingsError(
                "algorithm.reporting.min_sample_timesteps_per_iteration: expected 0, got "
                f"{config.min_sample_timesteps_per_iteration}; {algorithm.name} samples no steps, so that its first "
                "iteration would never end"
            )
        check_recording(config.input_, env)


def _because(env: EnvSettings) -> str:
    return f'env.actions = "{env.actions}"' + (" and env.portfolio = true" if env.portfolio else "")


def _instead(name: str, space: type[Space[Any]], env: EnvSettings) -> str:
    others = [other for other in ("SAC", "PPO", "A2C", "APPO", "IMPALA") if space in _TAKES.get(other, _ALL)]
    ways = []
    if Discrete in _TAKES[name]:
        ways += ['env.actions = "targets"'] if space is Box else []
        ways += ["env.portfolio = false"] if env.portfolio else []
    else:
        ways += ['env.actions = "weights"']
    return f"{' and '.join(ways)}, or algorithm.name = {' or '.join(repr(other) for other in others)}"
