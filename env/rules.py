"""Settings as the compiled step reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from env.rewards import reward_of
from env.settings import EnvSettings
from env.state import RULES


def rules_of(settings: EnvSettings) -> NDArray[Any]:
    """Return the rules of these settings, one record of ``env.state.RULES``."""
    names = settings.protections
    values: dict[str, Any] = {
        "discrete": settings.discrete,
        "holds": settings.actions == "hold_buy_sell",
        "quantities": settings.actions == "quantities",
        "by_action": settings.protect_by_action,
        "each": 1 + (len(names) if settings.protect_by_action else 0),
        "band": settings.no_trade_band,
        "volume_share": settings.max_volume_share or 0.0,
        "carries": settings.remainder == "carry",
        "maintenance": settings.maintenance_margin,
        "reward": reward_of(settings)[0],
        "decay": settings.reward_decay,
        "penalty": settings.drawdown_penalty,
        "scale": settings.reward_scale,
    }
    for place, field in (("stop_at", "stop_loss"), ("profit_at", "take_profit"), ("trail_at", "trailing_stop")):
        values[field] = getattr(settings, field) or 0.0
        values[place] = 1 + names.index(field) if field in names else 0
    rules = np.zeros((), dtype=RULES)
    for name in RULES.names or ():
        rules[name] = values[name] if name in values else getattr(settings, name)
    return rules


def target_table(settings: EnvSettings) -> NDArray[np.float64]:
    """Return the target of each choice, float64 (n,); of ``hold_buy_sell`` the first means nothing."""
    if settings.actions == "hold_buy_sell":
        return np.array([0.0, max(settings.targets), min(settings.targets)])
    return np.array(settings.targets)
