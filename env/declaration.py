"""How a function of bars says what it needs to be a feature: ``@feature(lookback=…)``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

FeatureFunction = Callable[..., Any]
"""``function(bars: Bars, *arguments) -> float array (n,)``: row t from the bars up to t alone."""

_Function = TypeVar("_Function", bound=FeatureFunction)


@dataclass(frozen=True)
class Declaration:
    """What a feature function declares.

    Attributes:
        lookback: Bars before row t that row t needs, or a function of the arguments that returns it. That function
            raises ValueError, with what is expected, for arguments that make no sense.
        scaled: Whether the policy's scaler standardises it; False for what is bounded or of unit scale by itself.
    """

    lookback: int | Callable[..., int]
    scaled: bool


def feature(*, lookback: int | Callable[..., int], scaled: bool = True) -> Callable[[_Function], _Function]:
    """Declare a function of bars to be a feature.

        @feature(lookback=1)
        def gap(bars: Bars) -> Floats:
            return np.log(bars.open / np.concatenate([bars.open[:1], bars.close[:-1]]))

    The function takes :class:`env.bars.Bars` of one symbol, then its arguments (annotated int or float), and returns
    a float array (n,). Row t may depend on the rows t - lookback … t alone, and is finite from row ``lookback`` on;
    earlier rows are replaced by 0 and never observed. ``check_feature`` proves it. Name it in ``settings.features`` as
    ``package.module:function``, or with arguments as ``package.module:function(20)``.

    Args:
        lookback: Bars before row t that row t needs: a number, or a function of the arguments. Missing bars do not
            count: they stand at the last price before them, however old that is.
        scaled: Whether the policy's scaler standardises it; False for what is bounded or of unit scale by itself.
    """

    def declare(function: _Function) -> _Function:
        function.__feature__ = Declaration(lookback, scaled)  # type: ignore[attr-defined]
        return function

    return declare


def declaration_of(function: Any) -> Declaration | None:
    """Return what a function declares, or None where it declares nothing."""
    found = getattr(function, "__feature__", None)
    return found if isinstance(found, Declaration) else None
