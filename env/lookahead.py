"""Proof that features do not look ahead: change the future at random, and demand the same past, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeGuard

import numpy as np

from env.bars import Bars, Flags, Floats, Ints, SymbolBars
from env.changed_bars import FUTURES, random_bars, with_values
from env.features import Feature, FeatureLike, Recipe
from env.frames import read_frames
from schemas.errors import InputError

if TYPE_CHECKING:
    from pandas import DataFrame

TRIALS = 64
"""Rows after which the future is changed, for each feature and symbol; half as many for the look-back."""

TOLERANCE = 1e-5
"""How far bars before the look-back may move a value, as a fraction of the feature's standard deviation.

The built-in features are not moved at all; the tolerance is for recursive ones of a user's, whose look-back is where
older bars do not matter any more. An observation is float32: 1e-5 is some hundred times its rounding error.
"""


@dataclass(frozen=True)
class Problem:
    """What is wrong with a feature.

    Attributes:
        feature: Its name.
        kind: ``look-ahead``, ``look-back`` (it depends on older bars than it declares), ``unsteady`` (two calls
            differ) or ``values`` (wrong shape or type, or not finite).
        row: Row of the bars that were checked, or None.
        message: One line, with the row and both values.
    """

    feature: str
    kind: str
    row: int | None
    message: str

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class FeatureReport:
    """What a check of features has found.

    Attributes:
        features: Names of the features that were checked.
        rows: Bars that each was checked on, over all symbols.
        trials: How often the future or the past of each was changed.
        problems: At most one of a kind for each feature; none if all is well.
    """

    features: tuple[str, ...]
    rows: tuple[int, ...]
    trials: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether no problem was found."""
        return not self.problems

    def __str__(self) -> str:
        lines: list[str] = []
        for name, rows in zip(self.features, self.rows, strict=True):
            well = f"feature {name!r}: no look-ahead, look-back as declared ({rows:,} bars, {self.trials} changes)"
            lines += [str(item) for item in self.problems if item.feature == name] or [well]
        return "\n".join(lines)


def check_feature(
    feature: FeatureLike | Sequence[FeatureLike],
    bars: Sequence[SymbolBars] | DataFrame | Mapping[str, DataFrame] | None = None,
    *,
    seed: int = 0,
    trials: int = TRIALS,
    tolerance: float = TOLERANCE,
) -> FeatureReport:
    """Check features, your own too, for look-ahead.

    For many rows t, all bars after t are changed: other prices, volumes and times, missing bars, more of them, fewer,
    or none at all. Every value up to t must stay the same, bit for bit. Then the bars before t - look-back are changed
    or cut off: values from t on must stay the same within the tolerance. Values must be finite, one a bar.

    Args:
        feature: A name as in ``settings.features``, a function declared with ``@feature``, or several of them.
        bars: Bars to check on: ``SymbolBars``, or what :func:`env.frames.read_frames` takes. None makes random ones of
            one minute (of a tenth of the interval for a feature such as ``1h:rsi(14)``), with gaps, missing bars and
            bars without volume.
        seed: Of everything random here: the same seed does the same checks.
        trials: Rows t for each feature and symbol.
        tolerance: How far bars before the look-back may move a value, as a fraction of its standard deviation.

    Raises:
        SettingsError: There is no such feature, or it does not suit the interval of the bars.
        InputError: The bars are not sound, or too few.
    """
    recipe = Recipe.of((feature,) if isinstance(feature, str) or callable(feature) else feature)
    given = None
    if bars is not None:
        given = list(bars) if _are_symbol_bars(bars) else read_frames(bars)
    problems: list[Problem] = []
    rows: list[int] = []
    for number, item in enumerate(recipe.features):
        rng = np.random.default_rng([seed, number])
        parts = given if given is not None else [random_bars(item, rng)]
        rows.append(sum(map(len, parts)))
        found: dict[str, Problem] = {}
        for part in parts:
            for problem in _Check(item, part, rng, tolerance).problems(trials):
                found.setdefault(problem.kind, problem)
        problems += found.values()
    return FeatureReport(recipe.names, tuple(rows), trials + trials // 2, tuple(problems))


def _are_symbol_bars(bars: object) -> TypeGuard[Sequence[SymbolBars]]:
    return isinstance(bars, Sequence) and all(isinstance(item, SymbolBars) for item in bars)


class _Check:
    """One feature on the bars of one symbol."""

    def __init__(self, feature: Feature, bars: SymbolBars, rng: np.random.Generator, tolerance: float) -> None:
        self.feature, self.bars, self.rng, self.tolerance = feature, bars, rng, tolerance
        filled = Bars.of(bars)
        self.lookback = feature.lookback(bars.interval)
        self.first = filled.first_valid + self.lookback
        if self.first + 2 > len(bars):
            raise InputError(
                f"feature {feature.name!r}: expected more than {self.first + 1} bars of {bars.symbol!r} to check its"
                f" look-back of {self.lookback}, got {len(bars)}; give more, or none for random ones"
            )
        # What a look-back counts: bars with prices, and with volume where the symbol has any.
        complete = filled.tradable & (filled.volume > 0)
        self.complete: Flags = complete if complete.any() else filled.tradable
        self.special = self._special_rows()

    def problems(self, trials: int) -> Iterator[Problem]:
        try:
            values = _values(self.feature, self.bars)
        except InputError as error:
            yield Problem(self.feature.name, "values", None, str(error))
            return
        again = _values(self.feature, self.bars)
        if (row := _first_difference(values, again)) is not None:
            yield self._problem("unsteady", row, f"is {values[row]} in one call and {again[row]} in the next")
            return
        for trial in range(trials):
            yield from self._look_ahead(values, trial)
        for _ in range(trials // 2):
            yield from self._look_back(values)

    def _special_rows(self) -> Ints:
        """Rows beside a hole or a gap, and the first and last: what is rare among all rows, and where leaks hide."""
        incomplete = ~self.complete
        gap = np.append(self.bars.ts_open[1:] > self.bars.ts_close[:-1], True)
        special = incomplete | np.append(incomplete[1:], True) | gap
        special[self.first] = special[-2] = True
        rows = np.flatnonzero(special)
        return rows[(rows >= self.first) & (rows < len(self.bars) - 1)]

    def _look_ahead(self, values: Floats, trial: int) -> Iterator[Problem]:
        anywhere = int(self.rng.integers(self.first, len(self.bars) - 1))
        row = anywhere if trial % 2 else int(self.rng.choice(self.special))
        name, change = FUTURES[trial % len(FUTURES)]
        try:
            changed = _values(self.feature, change(self.bars, row, self.rng))
        except InputError as error:
            yield Problem(self.feature.name, "values", None, f"{error} (future {name} after row {row})")
            return
        at = _first_difference(values[: row + 1], changed[: row + 1])
        if at is not None:
            yield self._problem(
                "look-ahead",
                at,
                f"looks ahead: row {at} is {values[at]}, but {changed[at]} with the bars after row {row} {name};"
                " row t may use the bars up to t alone",
            )

    def _look_back(self, values: Floats) -> Iterator[Problem]:
        row = int(self.rng.integers(self.first, len(self.bars)))
        begin = row - self.lookback
        if not self.complete[begin : row + 1].all():
            earlier = np.flatnonzero(self.complete[: begin + 1])
            whole = 0 if self.feature.interval is None else self.feature.interval // self.bars.interval
            begin = int(earlier[-1]) - whole if len(earlier) else 0
        if begin <= 0:
            return
        allowed = self.tolerance * float(values[self.first :].std())
        cut = self.bars.cut(begin, len(self.bars))
        older = with_values(self.bars, slice(0, begin), self.rng)
        for name, part, shift in (("changed", older, 0), ("cut off", cut, begin)):
            try:
                changed = _values(self.feature, part)
            except InputError as error:
                yield Problem(self.feature.name, "values", None, f"{error} (bars before row {begin} {name})")
                return
            far = np.abs(changed[row - shift :] - values[row:]) > allowed
            if far.any():
                at = row + int(np.argmax(far))
                yield self._problem(
                    "look-back",
                    at,
                    f"reaches behind its look-back of {self.lookback} bars: row {at} is {values[at]}, but"
                    f" {changed[at - shift]} with the bars before row {begin} {name}; declare a longer one",
                )
                return

    def _problem(self, kind: str, row: int, text: str) -> Problem:
        return Problem(self.feature.name, kind, row, f"feature {self.feature.name!r} of {self.bars.symbol!r} {text}")


def _values(feature: Feature, bars: SymbolBars) -> Floats:
    filled = Bars.of(bars)
    out = np.zeros(len(bars))
    out[filled.first_valid :] = feature.compute(filled[filled.first_valid :])
    return out


def _first_difference(one: Floats, other: Floats) -> int | None:
    """First row whose bits differ (an array may be shorter)."""
    differs = one.view(np.int64) != other.view(np.int64)
    return int(np.argmax(differs)) if differs.any() else None
