"""Settings to RLlib's ``AlgorithmConfig``, whose methods are the truth.

A table ``[algorithm.training]`` is a call of ``config.training(...)``, with RLlib's own argument names.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from ray.rllib import algorithms
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.callbacks.callbacks import RLlibCallback

from env.settings import EnvSettings
from schemas.errors import SettingsError
from trainer.algorithm_defaults import RLLIB_NAMES, default_tables, with_model_defaults
from trainer.callbacks import EventCallbacks, add_callbacks
from trainer.environments import ENV_ID, register
from trainer.models import as_module_spec, check_model, use_model
from trainer.settings import AlgorithmSettings, EnvConfig, EventSettings

_METHODS = (
    "api_stack",
    "callbacks",
    "checkpointing",
    "debugging",
    "env_runners",
    "environment",
    "evaluation",
    "experimental",
    "fault_tolerance",
    "framework",
    "learners",
    "multi_agent",
    "offline_data",
    "python_environment",
    "reporting",
    "resources",
    "rl_module",
    "training",
)
"""Methods of an ``AlgorithmConfig`` that set something."""

_OURS = {
    ("environment", "env"): "[env] for the environment's settings",
    ("environment", "env_config"): "[env]",
    ("debugging", "seed"): "train.seed",
    ("evaluation", "evaluation_duration"): "data.symbols: the test trades each symbol, or the portfolio, once",
    ("evaluation", "evaluation_config"): "data.test_from and data.test_fraction for what is tested",
}


def known_algorithms() -> list[str]:
    """Names of the algorithms that this RLlib exports, and ours for what it has under another name."""
    names = {name.removesuffix("Config") for name in algorithms.__all__ if name.endswith("Config")}
    # `Impala` is an old spelling of the same class, `Algorithm` the abstract base.
    return sorted((names - {"Algorithm", "Impala"}) | RLLIB_NAMES.keys())


def new_config(settings: AlgorithmSettings) -> AlgorithmConfig:
    """The algorithm's config with our defaults, then the user's tables, each by RLlib's own method.

    Raises:
        SettingsError: an unknown algorithm, method or argument (the nearest known one is suggested), or a value that
            RLlib refuses.
    """
    known = known_algorithms()
    if settings.name not in known:
        raise SettingsError(
            f"algorithm.name {settings.name!r}: expected one of {', '.join(known)}{_near(settings.name, known)}"
        )
    _refuse_ours(settings.tables)
    config: AlgorithmConfig = getattr(algorithms, f"{RLLIB_NAMES.get(settings.name, settings.name)}Config")()
    for tables in (*default_tables(settings.name), with_model_defaults(settings.tables)):
        for method, arguments in tables.items():
            _apply(config, settings.name, method, arguments)
    check_model(config, settings.tables.get("rl_module", {}).get("model_config", {}))
    return config


def build_config(
    settings: AlgorithmSettings, train: EnvConfig, test: EnvConfig, events: EventSettings, test_episodes: int
) -> AlgorithmConfig:
    """The complete config of a run: ``build_config(...).build_algo()``.

    Args:
        settings: The ``[algorithm]`` tables.
        train: What training environments are made of.
        test: What evaluation environments are made of.
        events: For the callbacks.
        test_episodes: Episodes of one evaluation over the whole test window: one a symbol, or one of a portfolio.
    """
    config = new_config(settings)
    # Also done where callbacks are imported; but Ray forgets it when it is shut down, and a process may train again.
    register()
    config.environment(ENV_ID, env_config=train.model_dump(mode="json"))
    config.debugging(seed=train.seed)
    use_model(config, settings.name, EnvSettings.from_mapping(train.settings))
    add_callbacks(config, partial(EventCallbacks, events), partial(SeedReplayBuffer, train.seed))
    config.evaluation(
        evaluation_duration=test_episodes,
        evaluation_config=AlgorithmConfig.overrides(
            env_config=test.model_dump(mode="json"), num_envs_per_env_runner=test.num_envs, explore=False
        ),
    )
    try:
        config.validate()
    except (ValueError, TypeError, NotImplementedError) as error:
        raise SettingsError(f"algorithm {settings.name}: RLlib refuses its settings: {_one_line(error)}") from error
    return config


class SeedReplayBuffer(RLlibCallback):
    """Seeds the replay buffer of DQN and SAC: RLlib leaves its generator unseeded, so no seed would reproduce a run."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._seed = seed

    def on_algorithm_init(self, *, algorithm: Any, **kwargs: Any) -> None:
        """Replace the generator before anything is drawn from it."""
        buffer = algorithm.local_replay_buffer
        if buffer is not None and hasattr(buffer, "rng"):
            buffer.rng = np.random.default_rng(self._seed)


def _apply(config: AlgorithmConfig, algorithm: str, method: str, arguments: Any) -> None:
    if method not in _METHODS:
        raise SettingsError(
            f"[algorithm.{method}]: expected a method of {algorithm}Config{_near(method, _METHODS)}; "
            f"the common ones are training, env_runners, rl_module, learners, evaluation, fault_tolerance"
        )
    if not isinstance(arguments, Mapping):
        raise SettingsError(f"algorithm.{method}: expected a table of arguments, got {arguments!r}")
    allowed = _arguments(type(config), method)
    for name in arguments:
        if name not in allowed:
            raise SettingsError(
                f"algorithm.{method}.{name}: {algorithm}Config.{method}() has no such argument{_near(name, allowed)}"
            )
    values = {name: as_module_spec(_resolve(f"algorithm.{method}.{name}", value)) for name, value in arguments.items()}
    try:
        getattr(config, method)(**values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        shown = ", ".join(f"{name} = {value!r}" for name, value in values.items())[:200]
        raise SettingsError(f"[algorithm.{method}] {shown}: RLlib refuses it: {_one_line(error)}") from error


def _refuse_ours(tables: Mapping[str, Any]) -> None:
    """Refuse what a run sets itself: the user's value would be overwritten in silence."""
    for method, arguments in tables.items():
        for name in arguments if isinstance(arguments, Mapping) else ():
            if (method, name) in _OURS:
                raise SettingsError(f"algorithm.{method}.{name}: set by the run itself; use {_OURS[method, name]}")


def _arguments(config_class: type, method: str) -> list[str]:
    """Argument names of a method and of those it overrides: a subclass's passes the rest on by ``**kwargs``."""
    names: set[str] = set()
    for parent in config_class.__mro__:
        if method in vars(parent):
            parameters = inspect.signature(vars(parent)[method]).parameters.values()
            names |= {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    return sorted(names - {"self"})


def _resolve(name: str, value: Any) -> Any:
    """A string ``class:package.module.Name`` stands for the class: TOML has none."""
    if not (isinstance(value, str) and value.startswith("class:")):
        return value
    module, _, attribute = value.removeprefix("class:").rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(f"{name}: expected class:package.module.Name, got {value!r}: {error}") from error


def _near(name: str, known: Sequence[str]) -> str:
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.5) or difflib.get_close_matches(
        name.upper(), known, n=1, cutoff=0.5
    )
    return f"; did you mean {found[0]!r}?" if found else ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
