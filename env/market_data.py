"""Bars as arrays, with the features that an observation is made of."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from schemas.errors import InputError

if TYPE_CHECKING:
    from pandas import DataFrame, Series

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FEATURE_RECIPE = "ohlcv-logret-v1"
"""Name of the computation below. Another computation gets another name: it is part of a window's identity."""

FEATURE_NAMES = ("open", "high", "low", "close", "volume")
"""Columns of a feature array: log of each price over the previous close, and the log change of volume."""

_PRICES = ("open", "high", "low", "close")


@dataclass(frozen=True)
class SymbolBars:
    """Consecutive bars of one symbol, oldest first.

    Attributes:
        symbol: Name of the instrument.
        base_row: Absolute number of the first row; the absolute number of a row is base_row + its index.
        ts_open: Opening times, UTC µs, int64 (n,), rising.
        ts_close: Closing times, UTC µs, int64 (n,): a bar is known from then on.
        open: Opening prices, float64 (n,). A bar with NaN in any price is missing: nothing fills, the last price stays.
        high: Highest prices, float64 (n,).
        low: Lowest prices, float64 (n,).
        close: Closing prices, float64 (n,).
        volume: Traded volume, float64 (n,); NaN or 0 where there is none.

    Raises:
        InputError: Lengths differ, times do not rise, or a price is not above 0 or high is below low.
    """

    symbol: str
    base_row: int
    ts_open: Ints
    ts_close: Ints
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats

    def __post_init__(self) -> None:
        for name in ("ts_open", "ts_close"):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=np.int64))
        for name in (*_PRICES, "volume"):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=np.float64))
        self._check_shapes()
        self._check_times()
        self._check_values()

    def __len__(self) -> int:
        return len(self.close)

    def _check_shapes(self) -> None:
        shapes = {name: getattr(self, name).shape for name in ("ts_open", "ts_close", *_PRICES, "volume")}
        if len(set(shapes.values())) != 1 or len(shapes["close"]) != 1:
            raise InputError(f"bars of {self.symbol!r}: expected columns of one length, got {shapes}; trim them alike")
        if not len(self):
            raise InputError(f"bars of {self.symbol!r}: expected at least one bar, got none; check the time range")

    def _check_times(self) -> None:
        self._refuse(self.ts_close <= self.ts_open, "ts_close", "a time after ts_open (UTC µs)")
        for name in ("ts_open", "ts_close"):
            falls = np.diff(getattr(self, name), prepend=np.iinfo(np.int64).min // 2) <= 0
            self._refuse(falls, name, "a time after the previous bar's (UTC µs), sorted and without duplicates")

    def _check_values(self) -> None:
        for name in _PRICES:
            column = getattr(self, name)
            self._refuse((column <= 0) | np.isinf(column), name, "a price above 0, or NaN for a missing bar")
        self._refuse(self.high < self.low, "high", "a price not below low")
        self._refuse((self.volume < 0) | np.isinf(self.volume), "volume", "a number not below 0, or NaN")

    def _refuse(self, bad: NDArray[np.bool_], column: str, expected: str) -> None:
        if bad.any():
            index = int(np.argmax(bad))
            row, value = self.base_row + index, getattr(self, column)[index]
            raise InputError(
                f"bars of {self.symbol!r}, row {row}, column {column!r}: expected {expected}, got {value};"
                " correct or drop the row"
            )


class MarketData:
    """Bars of one or several symbols, end to end in the same arrays, with their features computed once.

    Attributes:
        symbols: Names, in the given order.
        base_rows: Absolute row number of each symbol's first bar, int64 (S,).
        offsets: Where each symbol starts in the arrays below, int64 (S + 1,); the last one is N.
        first_valid: Index within each symbol of its first bar with prices, int64 (S,).
        ts_open: Opening times, UTC µs, int64 (N,).
        ts_close: Closing times, UTC µs, int64 (N,).
        open: Opening prices, float64 (N,); on a missing bar the last price known.
        mark: Closing prices, float64 (N,); on a missing bar the last price known. Never 0.
        tradable: False on a missing bar, bool (N,).
        features: Raw causal features, float32 (N, F): row t uses bars up to t alone; 0 on a missing bar.

    Raises:
        InputError: No symbols, a symbol given twice, or one without any bar with prices.
    """

    def __init__(self, bars: Sequence[SymbolBars]) -> None:
        names = [item.symbol for item in bars]
        if not names or len(set(names)) != len(names):
            raise InputError(f"market data: expected one or more different symbols, got {names}; give each symbol once")
        self.symbols: tuple[str, ...] = tuple(names)
        self.base_rows: Ints = np.array([item.base_row for item in bars], dtype=np.int64)
        self.offsets: Ints = np.cumsum([0, *(len(item) for item in bars)], dtype=np.int64)
        self.ts_open: Ints = np.concatenate([item.ts_open for item in bars])
        self.ts_close: Ints = np.concatenate([item.ts_close for item in bars])
        columns = [_Columns(item) for item in bars]
        self.first_valid: Ints = np.array([item.first_valid for item in columns], dtype=np.int64)
        self.open: Floats = np.concatenate([item.open for item in columns])
        self.mark: Floats = np.concatenate([item.mark for item in columns])
        self.tradable: NDArray[np.bool_] = np.concatenate([item.tradable for item in columns])
        self.features: NDArray[np.float32] = np.concatenate([item.features for item in columns])

        self._scaled: tuple[str, float, NDArray[np.float32]] | None = None

    def number(self, symbol: str) -> int:
        """Return the number of a symbol, or raise InputError."""
        if symbol not in self.symbols:
            raise InputError(f"symbol {symbol!r}: expected one of {', '.join(self.symbols)}; choose one of these")
        return self.symbols.index(symbol)

    def scaled(self, scaler: Scaler, limit: float) -> NDArray[np.float32]:
        """Return the features scaled and clipped to ± limit, float32 (N, F); environments of one process share them."""
        if self._scaled is None or self._scaled[:2] != (scaler.version, limit):
            self._scaled = (scaler.version, limit, np.clip(scaler.apply(self.features), -limit, limit))
        return self._scaled[2]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the scaled features: they are made again where they are needed."""
        return self.__dict__ | {"_scaled": None}

    @classmethod
    def from_frame(cls, frame: DataFrame, symbol: str = "frame") -> Self:
        """Read a pandas DataFrame of bars of one symbol.

        Args:
            frame: Index: opening times (DatetimeIndex; without time zone it is taken as UTC), rising. Columns: open,
                high, low, close, volume, in any case; others are ignored. NaN prices mean a missing bar.
            symbol: Name of the instrument.

        A bar's closing time is its opening time plus the shortest distance of two bars.

        Raises:
            InputError: No DatetimeIndex, a missing column, fewer than two bars, or a bad row.
        """
        columns = {str(name).lower(): name for name in frame.columns}
        missing = [name for name in (*_PRICES, "volume") if name not in columns]
        if missing:
            raise InputError(
                f"frame {symbol!r}: expected columns open, high, low, close, volume, got {list(frame.columns)};"
                f" add {', '.join(missing)}"
            )
        index: Any = frame.index
        if not hasattr(index, "as_unit") or not hasattr(index, "tz"):
            raise InputError(
                f"frame {symbol!r}: expected a DatetimeIndex of opening times, got {type(index).__name__};"
                " set it with frame.set_index(pandas.to_datetime(...))"
            )
        if len(index) < 2:
            raise InputError(f"frame {symbol!r}: expected at least two bars, got {len(index)}; give more history")
        if bool(index.isna().any()):
            row = int(np.argmax(np.asarray(index.isna())))
            raise InputError(f"frame {symbol!r}, row {row}, index: expected a time, got NaT; correct or drop the row")
        ts_open = np.asarray((index if index.tz is None else index.tz_convert("UTC")).as_unit("us").asi8)
        steps = np.diff(ts_open)
        interval = int(steps[steps > 0].min()) if (steps > 0).any() else 1
        values: dict[str, Floats] = {}
        for name in (*_PRICES, "volume"):
            values[name] = _numbers(frame[columns[name]], symbol, name)
        return cls([SymbolBars(symbol, 0, ts_open, ts_open + interval, **values)])


class _Columns:
    """What one symbol contributes to MarketData."""

    def __init__(self, bars: SymbolBars) -> None:
        prices = np.column_stack([bars.open, bars.high, bars.low, bars.close])
        self.tradable: NDArray[np.bool_] = np.asarray(np.isfinite(prices).all(axis=1))
        if not self.tradable.any():
            raise InputError(
                f"bars of {bars.symbol!r}: expected a bar with prices, got NaN in every one; drop the symbol"
            )
        self.first_valid = int(np.argmax(self.tradable))
        self.mark = _carry(bars.close, self.tradable)
        self.open = np.where(self.tradable, bars.open, self.mark)
        traded = self.tradable & (bars.volume > 0)
        volume = _carry(bars.volume, traded) if traded.any() else np.ones(len(bars))

        self.features = np.zeros((len(bars), len(FEATURE_NAMES)), dtype=np.float32)
        known = self.tradable[1:] & (np.arange(1, len(bars)) > self.first_valid)
        self.features[1:, :4][known] = np.log(prices[1:][known] / self.mark[:-1, None][known])
        change = known & traded[1:] & (np.arange(1, len(bars)) > int(np.argmax(traded)))
        self.features[1:, 4][change] = np.log(volume[1:][change] / volume[:-1][change])


def _numbers(column: Series, symbol: str, name: str) -> Floats:
    try:
        return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))
    except (TypeError, ValueError) as error:
        row, value = next((row, value) for row, value in enumerate(column) if not _is_number(value))
        raise InputError(
            f"frame {symbol!r}, row {row}, column {name!r}: expected a number or NaN, got {value!r};"
            " correct or drop the row"
        ) from error


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _carry(values: Floats, valid: NDArray[np.bool_]) -> Floats:
    """Last valid value up to each row, and before the first one that first one: those rows never reach an episode."""
    last = np.maximum.accumulate(np.where(valid, np.arange(len(values)), np.argmax(valid)))
    return np.asarray(values[last])


@dataclass(frozen=True, eq=False)
class Scaler:
    """Standardises features. It belongs to the policy: fit it on training data alone and keep it with the policy.

    Attributes:
        mean: Mean per feature, float32 (F,).
        std: Standard deviation (ddof 0) per feature, float32 (F,), above 0.
        version: Hash of the above and of the feature recipe: equal numbers, equal version.
    """

    mean: NDArray[np.float32]
    std: NDArray[np.float32]
    version: str

    @classmethod
    def of(cls, mean: Any, std: Any) -> Self:
        """Make a scaler from means and deviations (F,); a deviation of 0 counts as 1.

        Raises:
            InputError: Shapes differ, or a number is not finite or a deviation is negative.
        """
        centre, spread = np.array(mean, dtype=np.float32), np.array(std, dtype=np.float32)
        if centre.ndim != 1 or centre.shape != spread.shape:
            raise InputError(f"scaler: expected mean and std of one shape (F,), got {centre.shape} and {spread.shape}")
        if not np.isfinite(centre).all() or not np.isfinite(spread).all() or (spread < 0).any():
            raise InputError(f"scaler: expected finite mean and std not below 0, got mean {centre}, std {spread}")
        spread[spread < 1e-8] = 1.0
        digest = hashlib.sha256(FEATURE_RECIPE.encode() + centre.tobytes() + spread.tobytes())
        return cls(centre, spread, digest.hexdigest()[:16])

    @classmethod
    def fit(cls, data: MarketData) -> Self:
        """Fit on the bars of ``data``, which must end before the stretch that is traded; missing bars do not count."""
        rows = data.tradable.copy()
        rows[data.offsets[:-1] + data.first_valid] = False  # the first bar has no previous close to compare with
        return cls.fit_features(data.features[rows] if rows.any() else data.features)

    @classmethod
    def fit_features(cls, features: NDArray[np.floating[Any]]) -> Self:
        """Fit on a feature array (n, F)."""
        return cls.of(features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64))

    @classmethod
    def identity(cls, size: int = len(FEATURE_NAMES)) -> Self:
        """Leave features as they are."""
        return cls.of(np.zeros(size), np.ones(size))

    def apply(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return (features - mean) / std, float32, of the same shape (n, F)."""
        if features.shape[-1] != self.mean.size:
            raise InputError(
                f"scaler {self.version}: expected {self.mean.size} features, got {features.shape[-1]};"
                f" fit it on data of recipe {FEATURE_RECIPE!r}"
            )
        return (features - self.mean) / self.std

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and strings, for a checkpoint or a record."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist(), "version": self.version}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read what :meth:`to_dict` wrote.

        Raises:
            InputError: A key is missing, or the numbers do not have the version that is written beside them.
        """
        missing = {"mean", "std", "version"} - set(values)
        if missing:
            raise InputError(f"scaler: expected mean, std and version, got {sorted(values)}; write it with to_dict()")
        scaler = cls.of(values["mean"], values["std"])
        if scaler.version != values["version"]:
            raise InputError(
                f"scaler: expected version {scaler.version} for these numbers and recipe {FEATURE_RECIPE!r},"
                f" got {values['version']}; take the scaler from the policy's own checkpoint"
            )
        return scaler
