"""The choice between our roll-out and update and RLlib's own: made here alone, from the config, with the reason.

Two parts are chosen, each behind one setting of RLlib's: the roll-out (``env_runner_cls``) and the update
(``learner_class``, with ``algo_class`` and ``replay_buffer_config``). Whatever a config asks for that ours do not do
falls back to RLlib's, which does, and the reason names the setting. Of an update that is ours it is chosen in the same
way whether its networks are run by kernels or by torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from gymnasium import spaces
from ray.rllib.callbacks.callbacks import RLlibCallback

from trainer.batched_runner import BatchedEnvRunner
from trainer.environments import ENV_ID
from trainer.lean_updates import LEAN_UPDATES, Reason, first_reason
from trainer.rllib_private import connector_settings, spaces_of

_EPISODE_HOOKS = ("on_episode_created", "on_episode_start", "on_episode_end", "on_sample_end")


@dataclass(frozen=True)
class FastPath:
    """What was chosen.

    Attributes:
        no_batched: Why the roll-out is RLlib's own, by name of the setting; None: it is batched.
        no_lean: Why the update is RLlib's own; None: it is lean.
        no_kernels: Why a lean update's networks are torch's; None: they are run by hand.
    """

    no_batched: Reason
    no_lean: Reason
    no_kernels: Reason

    @property
    def line(self) -> str:
        """The choice in one line, for the log of the run."""
        lean = "lean, by kernels" if self.no_kernels is None else f"lean, by torch, because {self.no_kernels}"
        rollout, update = (
            ours if reason is None else f"RLlib's own, because {reason}"
            for ours, reason in (("batched", self.no_batched), (lean, self.no_lean))
        )
        if self.no_batched is not None and self.no_lean == self.no_batched:
            return f"roll-out and update: {update}"
        return f"roll-out: {rollout}; update: {update}"


def use_fast_path(config: Any) -> FastPath:
    """Make a config use our roll-out and update where they do all that it sets.

    Call it last: what is set afterwards is not looked at.

    Args:
        config: An ``AlgorithmConfig`` with its environment set; changed in place.

    Returns:
        What was chosen, and why.
    """
    path = choose(config)
    if path.no_batched is None:
        config.env_runners(env_runner_cls=BatchedEnvRunner)
        if config.env == ENV_ID and config.gym_env_vectorize_mode == "sync":
            config.env_runners(gym_env_vectorize_mode="vector_entry_point")
    if path.no_lean is None:
        LEAN_UPDATES[config.algo_class.__name__].use(config, by_hand=path.no_kernels is None)
    return path


def choose(config: Any) -> FastPath:
    """What ``use_fast_path`` would do to a config. It makes one foreign environment to ask for its spaces."""
    ask = cache(partial(spaces_of, config))
    no_batched = first_reason((*_BATCHED, partial(_spaces, ask=ask)), config)
    no_lean = no_batched or first_reason(_LEAN, config)
    no_kernels = no_lean or LEAN_UPDATES[config.algo_class.__name__].why_no_kernels(config, ask)
    return FastPath(no_batched, no_lean, no_kernels)


# --- the rules: each names the setting that ours do not do ------------------------------------------------------------


def _api_stack(config: Any) -> Reason:
    if not (config.enable_env_runner_and_connector_v2 and config.enable_rl_module_and_learner):
        return "api_stack chooses RLlib's old one"
    return "framework is not torch" if config.framework_str != "torch" else None


def _multi_agent(config: Any) -> Reason:
    return "multi_agent is set" if config.is_multi_agent else None


def _runner_class(config: Any) -> Reason:
    if config.env_runner_cls is not None:
        return f"env_runners.env_runner_cls is set to {config.env_runner_cls.__name__}"
    return "offline_data.output is set" if config.output else None


def _connectors(config: Any) -> Reason:
    given = connector_settings(config)
    for name in ("env_to_module_connector", "module_to_env_connector"):
        if given[name] is not None:
            return f"env_runners.{name} is set"
    for name in ("env_to_module", "module_to_env"):
        setting = f"add_default_connectors_to_{name}_pipeline"
        if not getattr(config, setting):
            return f"env_runners.{setting} is False"
    if config.observation_filter != "NoFilter":
        return f"env_runners.observation_filter is {config.observation_filter}"
    return None


def _episode_lists(config: Any) -> Reason:
    return None if config.episodes_to_numpy else "env_runners.episodes_to_numpy is False"


def _step_callbacks(config: Any) -> Reason:
    return next((f"callbacks: {name} is called at each step" for name in _hooks(config, ("on_episode_step",))), None)


def _spaces(config: Any, ask: Callable[[], tuple[Any, Any]]) -> Reason:
    if config.env == ENV_ID or config.env is None:
        return None
    observation, action = ask()
    if not isinstance(observation, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        return f"environment.observation_space is a {type(observation).__name__}"
    if not isinstance(action, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        return f"environment.action_space is a {type(action).__name__}"
    return None


def _whole_episodes(config: Any) -> Reason:
    return "env_runners.batch_mode is complete_episodes" if config.batch_mode == "complete_episodes" else None


def _episode_callbacks(config: Any) -> Reason:
    """Callbacks that want RLlib's episodes, where rollouts have none."""
    return next((f"callbacks: {name} gets RLlib's episodes" for name in _hooks(config, _EPISODE_HOOKS)), None)


def _update(config: Any) -> Reason:
    name = config.algo_class.__name__
    return LEAN_UPDATES[name].why_not(config) if name in LEAN_UPDATES else f"{name} has no lean update"


_BATCHED: tuple[Callable[[Any], Reason], ...] = (
    _api_stack,
    _multi_agent,
    _runner_class,
    _connectors,
    _episode_lists,
    _step_callbacks,
)
_LEAN: tuple[Callable[[Any], Reason], ...] = (_whole_episodes, _episode_callbacks, _update)


def _hooks(config: Any, names: tuple[str, ...]) -> Iterator[str]:
    """The user's functions and methods for these callbacks, by name; ours that read rollouts are not among them."""
    for name in names:
        if getattr(config, f"callbacks_{name}") is not None:
            yield name
    given = config.callbacks_class
    for item in given if isinstance(given, (list, tuple)) else [given]:
        found = item.func if isinstance(item, partial) else item
        if not isinstance(found, type):
            yield f"a factory, {getattr(found, '__name__', found)}, of which the methods are not known,"
            continue
        reads_rollouts = getattr(found, "reads_rollouts", False)
        for name in names:
            overridden = getattr(found, name, None) is not getattr(RLlibCallback, name)
            if overridden and not (reads_rollouts and name in _EPISODE_HOOKS):
                yield f"{found.__name__}.{name}"
