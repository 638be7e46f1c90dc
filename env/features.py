"""Features by name: what a setting such as ``rsi(14)`` or ``1h:log_close`` means, and a recipe of several of them."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import marshal
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from env import indicators
from env.bars import Bars, Floats
from env.coarser import Coarser, check_intervals, fine_lookback
from env.declaration import Declaration, FeatureFunction, declaration_of
from env.loading import load_function
from schemas.errors import InputError, SettingsError
from schemas.times import interval_us, to_iso

DEFAULT_FEATURES = ("log_open", "log_high", "log_low", "log_close", "log_volume")

VERSION = "v1"
"""Version of every computation in ``env.indicators`` and ``env.coarser``: part of a recipe's identity."""

BUILT_IN: dict[str, FeatureFunction] = {
    name: function for name, function in vars(indicators).items() if declaration_of(function) is not None
}
"""Name to function of the features that come with Millrace."""

FeatureLike = str | FeatureFunction
"""A feature's name as in ``settings.features``, or a function declared with ``@feature``."""

_LARGEST = float(np.finfo(np.float32).max)

_NAME = re.compile(r"(?:([1-9]\d*[smhdw]):)?([A-Za-z_][\w.]*(?::[A-Za-z_][\w.]*)?)(?:\(([^()]*)\))?")


@dataclass(frozen=True)
class Feature:
    """A named function of one symbol's bars.

    Attributes:
        name: Its full name, with every argument: ``rsi(14)``, ``1h:log_close``, ``package.module:function``.
        function: Computes it.
        arguments: Handed to the function after the bars.
        interval: Length of the coarser bars that it is computed from, µs; None: the bars as they are.
        bars_back: Its look-back, in bars of its interval.
        scaled: Whether the policy's scaler standardises it.
        source: Hash of a user's source text; empty for one that comes with Millrace.
    """

    name: str
    function: FeatureFunction
    arguments: tuple[int | float, ...]
    interval: int | None
    bars_back: int
    scaled: bool
    source: str

    @classmethod
    def of(cls, wanted: FeatureLike) -> Self:
        """Find a feature by its name, or take a declared function.

        Raises:
            SettingsError: No such feature (the nearest one is suggested), bad arguments, or an undeclared function.
        """
        if callable(wanted):
            function, prefix, interval, text = wanted, "", None, None
            base = f"{wanted.__module__}:{getattr(wanted, '__qualname__', type(wanted).__qualname__)}"
        else:
            found = _NAME.fullmatch(wanted.replace(" ", ""))
            if found is None:
                raise SettingsError(
                    f"feature {wanted!r}: expected a name such as 'rsi(14)', '1h:log_close' or"
                    " 'package.module:function'; correct it"
                )
            coarse, base, text = found.groups()
            prefix, interval = (f"{coarse}:", interval_us(coarse)) if coarse else ("", None)
            function = load_function(base, "features") if ":" in base else _built_in(base)
        declared = declaration_of(function)
        if declared is None:
            raise SettingsError(
                f"feature {base!r}: expected a function declared with @feature(lookback=…), got {function!r};"
                " declare its look-back"
            )
        arguments = _arguments(base, function, text)
        bars_back = _bars_back(base, declared, arguments)
        name = prefix + base + (f"({','.join(map(repr, arguments))})" if arguments else "")
        own = BUILT_IN.get(base) is function
        return cls(name, function, arguments, interval, bars_back, declared.scaled, "" if own else _source(function))

    @property
    def identity(self) -> str:
        """The name, and for a user's function the hash of its source."""
        return f"{self.name}#{self.source}" if self.source else self.name

    def lookback(self, interval: int, rows: int = 1) -> int:
        """Bars of ``interval`` µs before a row that the feature needs there.

        Args:
            interval: Length of a bar, µs.
            rows: Most bars that close within one interval; above 1 on a common clock of symbols that close apart.

        Raises:
            SettingsError: The feature's own interval is no multiple of this one.
        """
        if self.interval is None:
            return self.bars_back
        check_intervals(interval, self.interval, self.name)
        return fine_lookback(self.bars_back, self.interval // interval * rows)

    def compute(self, bars: Bars) -> Floats:
        """Compute the feature of bars that begin with one that has prices, float64 (n,).

        It is 0 where the look-back reaches behind the first bar.

        Raises:
            InputError: The function returned something else than a finite number a bar.
            SettingsError: The feature's own interval is no multiple of the bars'.
        """
        if self.interval is None:
            return self._values(bars)
        check_intervals(bars.interval, self.interval, self.name)
        coarser = Coarser.of(bars, self.interval)
        return coarser.spread(self._values(coarser.bars))

    def _values(self, bars: Bars) -> Floats:
        """Values at bars of the feature's own interval, float64 (n,)."""
        if len(bars) <= self.bars_back:
            return np.zeros(len(bars))
        values = np.asarray(self.function(bars, *self.arguments))
        if values.shape != (len(bars),) or values.dtype.kind not in "fiub":
            raise InputError(
                f"feature {self.name!r} of {bars.symbol!r}: expected {len(bars)} numbers, one a bar, got shape"
                f" {values.shape} of {values.dtype}; correct the function"
            )
        out = values.astype(np.float64)
        out[: self.bars_back] = 0.0
        bad = ~(np.abs(out) <= _LARGEST)
        if bad.any():
            row = int(np.argmax(bad))
            raise InputError(
                f"feature {self.name!r} of {bars.symbol!r}, bar closing {to_iso(int(bars.ts_close[row]))}: expected a"
                f" finite float32 from row {self.bars_back} (its look-back) on, got {values[row]} in row {row}; correct"
                " the function or its look-back"
            )
        return out


@dataclass(frozen=True)
class Recipe:
    """Features in order: what the columns of ``MarketData.features`` are."""

    features: tuple[Feature, ...]

    @classmethod
    def of(cls, wanted: Sequence[FeatureLike] = DEFAULT_FEATURES) -> Self:
        """Find features by name, or take declared functions.

        Raises:
            SettingsError: None at all, one that cannot be found (see :meth:`Feature.of`), or one twice.
        """
        features = tuple(map(Feature.of, (wanted,) if isinstance(wanted, str) else wanted))
        names = [item.name for item in features]
        if not names or len(set(names)) != len(names):
            raise SettingsError(f"features: expected one or more different ones, got {names}; name each once")
        return cls(features)

    @property
    def names(self) -> tuple[str, ...]:
        """Full names of the features."""
        return tuple(item.name for item in self.features)

    @property
    def scaled(self) -> tuple[bool, ...]:
        """Whether the policy's scaler standardises each feature."""
        return tuple(item.scaled for item in self.features)

    @property
    def identity(self) -> str:
        """What is computed and how: part of a window's identity. Equal ones give equal features of equal bars."""
        return f"{VERSION} {' '.join(item.identity for item in self.features)}"

    def lookback(self, interval: int, rows: int = 1) -> int:
        """Bars before the first row at which every feature is defined; arguments as of :meth:`Feature.lookback`.

        Raises:
            SettingsError: A feature's own interval is no multiple of this one.
        """
        return max(item.lookback(interval, rows) for item in self.features)

    def compute(self, bars: Bars) -> NDArray[np.float32]:
        """Compute the features of one symbol, float32 (n, F).

        Row t is made of the bars up to t alone, and of no more than ``lookback`` before it. It is 0 before the first
        bar with prices and where a feature's look-back reaches behind it.

        Raises:
            InputError: A function returned something else than a finite number a bar.
            SettingsError: A feature's interval is no multiple of the bars'.
        """
        first = bars.first_valid
        seen = bars[first:]
        out = np.zeros((len(bars), len(self.features)), dtype=np.float32)
        for column, item in enumerate(self.features):
            out[first:, column] = item.compute(seen)
        return out


def _built_in(name: str) -> FeatureFunction:
    if name not in BUILT_IN:
        near = difflib.get_close_matches(name, BUILT_IN, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known features: {', '.join(BUILT_IN)}"
        raise SettingsError(f"unknown feature {name!r}; {hint}; a function of yours is 'package.module:function'")
    return BUILT_IN[name]


def _arguments(name: str, function: FeatureFunction, text: str | None) -> tuple[int | float, ...]:
    """Arguments in full: those in the text, then the function's defaults; int where it is annotated so, else float."""
    parameters = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    texts = text.split(",") if text else []
    usage = f"{name}({','.join(item.name for item in parameters)})" if parameters else f"{name} without arguments"
    wanted = [item for item in parameters if item.default is item.empty]
    if not len(wanted) <= len(texts) <= len(parameters):
        raise SettingsError(f"feature {name!r}: expected {usage}, got {len(texts)} arguments; correct it")
    values: list[int | float] = []
    for place, item in enumerate(parameters):
        if place >= len(texts):
            values.append(item.default)
            continue
        kind = int if item.annotation is int else float
        try:
            values.append(kind(texts[place]))
        except ValueError as error:
            expected = "a whole number" if kind is int else "a number"
            raise SettingsError(
                f"feature {name!r}, argument {item.name!r}: expected {expected}, got {texts[place]!r}; write {usage}"
            ) from error
    return tuple(values)


def _bars_back(name: str, declared: Declaration, arguments: tuple[int | float, ...]) -> int:
    try:
        bars = declared.lookback(*arguments) if callable(declared.lookback) else declared.lookback
    except ValueError as error:
        raise SettingsError(f"feature {name!r}: expected {error}, got {arguments}; correct the arguments") from error
    if not isinstance(bars, int) or bars < 0:
        raise SettingsError(f"feature {name!r}: expected a look-back of whole bars, 0 or more, got {bars!r}")
    return bars


def _source(function: Any) -> str:
    """Hash of the source text of a function; of its byte code where there is no text, as at a bare prompt."""
    try:
        content = inspect.getsource(function).encode()
    except (OSError, TypeError):
        content = marshal.dumps(function.__code__)
    return hashlib.sha256(content).hexdigest()[:12]
