"""Millrace: reinforcement-learning trading agents, trained on streams of market data.

Import from here; everything else is inside. Names are imported at first use, so that ``import millrace`` needs neither
Ray nor torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from millrace._rooms import check_rooms

check_rooms()

import env  # noqa: E402 - only after it is known to be ours

if TYPE_CHECKING:
    from env.bars import Bars, SymbolBars
    from env.declaration import feature
    from env.episode_record import EpisodeRecord
    from env.lookahead import check_feature
    from env.market_data import MarketData
    from env.policies import baselines, play
    from env.rewards import RewardInput
    from env.scaler import Scaler
    from env.settings import EnvSettings
    from env.trading_env import TradingEnv
    from env.vector_env import TradingVectorEnv
    from millrace.stack import LocalStack
    from schemas.errors import MillraceError
    from trainer.callbacks import EventCallbacks, finish_run
    from trainer.checkpoints import open_checkpoint
    from trainer.fast_path import use_fast_path
    from trainer.publish import publish_events
    from trainer.settings import EventSettings

__all__ = [
    "Bars",
    "EnvSettings",
    "EpisodeRecord",
    "EventCallbacks",
    "EventSettings",
    "LocalStack",
    "MarketData",
    "MillraceError",
    "RewardInput",
    "Scaler",
    "SymbolBars",
    "TradingEnv",
    "TradingVectorEnv",
    "__version__",
    "baselines",
    "check_feature",
    "feature",
    "finish_run",
    "open_checkpoint",
    "play",
    "publish_events",
    "use_fast_path",
]

__version__ = "0.1.0"

_HOMES = {
    "Bars": "env.bars",
    "EnvSettings": "env.settings",
    "EpisodeRecord": "env.episode_record",
    "EventCallbacks": "trainer.callbacks",
    "EventSettings": "trainer.settings",
    "LocalStack": "millrace.stack",
    "MarketData": "env.market_data",
    "MillraceError": "schemas.errors",
    "RewardInput": "env.rewards",
    "Scaler": "env.scaler",
    "SymbolBars": "env.bars",
    "TradingEnv": "env.trading_env",
    "TradingVectorEnv": "env.vector_env",
    "baselines": "env.policies",
    "check_feature": "env.lookahead",
    "feature": "env.declaration",
    "finish_run": "trainer.callbacks",
    "open_checkpoint": "trainer.checkpoints",
    "play": "env.policies",
    "publish_events": "trainer.publish",
    "use_fast_path": "trainer.fast_path",
}

# gymnasium.make("millrace/Trading-v0", …) works after `import millrace`.
env.register()


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'millrace' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
