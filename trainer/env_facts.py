"""What one environment of a runner tells about its episode, be they made one by one or as arrays."""

from __future__ import annotations

from typing import Any

from env.episode_record import EpisodeRecord
from env.episode_tape import EpisodeTape
from env.settings import EnvSettings
from env.trading_env import TradingEnv
from env.vector_env import TradingVectorEnv
from trainer.episode_events import Beginning, Lineage


def beginning_of(env: Any, env_index: int, episode: Any) -> Beginning:
    """What ``reset`` has told. The record is taken once, at the end of the episode: it is made of all its steps."""
    settings = getattr(_sub_env(env, env_index), "settings", None)
    if not isinstance(settings, EnvSettings):
        return Beginning()
    info = episode.get_infos(0)
    return Beginning(info["symbol"], info["start_row"], settings.initial_cash)


def tape_of(env: Any, env_index: int) -> EpisodeTape | None:
    """What the market model left behind of its episode; None where the environment makes the record its own way."""
    one = _sub_env(env, env_index)
    own = getattr(type(one), "episode_record", None)
    if own is TradingVectorEnv.episode_record:
        tape: EpisodeTape = one.episode_tape(env_index)
        return tape
    return one.episode_tape() if own is TradingEnv.episode_record else None


def record_of(env: Any, env_index: int) -> EpisodeRecord | None:
    """The record of its episode; None where it keeps none."""
    take = getattr(_sub_env(env, env_index), "episode_record", None)
    if not callable(take):
        return None
    record: EpisodeRecord = take() if hasattr(env, "envs") else take(env_index)
    return record


def lineage_of(env: Any, env_index: int) -> Lineage | None:
    """Where its episodes come from; None where it is not ours."""
    return getattr(_sub_env(env, env_index), "lineage", None)


def _sub_env(env: Any, env_index: int) -> Any:
    """One environment of several, or their vector environment where they are arrays."""
    envs = getattr(env, "envs", None)
    return envs[env_index].unwrapped if envs is not None else env
