"""Bars from pandas DataFrames."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from env.bars import PRICES, Floats, Ints, SymbolBars
from schemas.errors import InputError
from schemas.times import DAY, HOUR

if TYPE_CHECKING:
    from pandas import DataFrame, Series

_FUNDING = ("funding_rate", "funding")
_SYMBOL = ("symbol", "ticker")


def read_frames(frame: DataFrame | Mapping[str, DataFrame], symbol: str = "frame") -> list[SymbolBars]:
    """Read a DataFrame of bars, or several.

    Args:
        frame: Bars of one symbol, or of several with a column or an index level named symbol or ticker, or a mapping of
            symbols to frames. Index: opening times (DatetimeIndex; without time zone it is taken as UTC), rising for
            each symbol. Columns: open, high, low, close, volume, and funding_rate (or funding) where there is any, in
            any case; others are ignored. NaN prices mean a missing bar.
        symbol: Name of the instrument, where the frame names none.

    A bar's closing time is its opening time plus the shortest distance of two bars of its symbol. Days and longer bars
    are counted on the clock of the index's time zone, where a day may have 23 or 25 hours.

    Returns:
        One entry a symbol, in order of appearance.

    Raises:
        InputError: No DatetimeIndex, a missing column, fewer than two bars of a symbol, or a bad row.
    """
    if isinstance(frame, Mapping):
        return [_read(part, str(name)) for name, part in frame.items()]
    levels = [name for name in frame.index.names if str(name).lower() in _SYMBOL]
    if levels and frame.index.nlevels > 1:
        frame = frame.reset_index(level=levels[0])
    column = next((name for name in frame.columns if str(name).lower() in _SYMBOL), None)
    if column is None:
        return [_read(frame, symbol)]
    if bool(frame[column].isna().any()):
        row = int(np.argmax(frame[column].isna().to_numpy()))
        raise InputError(f"frame, row {row}, column {column!r}: expected a symbol, got none; correct or drop the row")
    return [_read(part, str(name)) for name, part in frame.groupby(column, sort=False)]


def _read(frame: DataFrame, symbol: str) -> SymbolBars:
    columns = {str(name).lower(): name for name in frame.columns}
    wanted = (*PRICES, "volume")
    missing = [name for name in wanted if name not in columns]
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
    ts_open, ts_close = _times(index)
    values = {name: _numbers(frame[columns[name]], symbol, name) for name in wanted}
    funding = next((_numbers(frame[columns[name]], symbol, name) for name in _FUNDING if name in columns), None)
    return SymbolBars(symbol, 0, ts_open, ts_close, funding=funding, **values)


def _times(index: Any) -> tuple[Ints, Ints]:
    """Opening and closing times, UTC µs, of an index of opening times."""
    ts_open = _utc(index)
    length = _shortest(ts_open)
    if index.tz is None or length < DAY - HOUR:
        return ts_open, ts_open + length
    local = index.tz_localize(None).as_unit("us")
    ends = local + np.timedelta64(_shortest(local.asi8), "us")
    return ts_open, _utc(ends.tz_localize(index.tz, nonexistent="shift_forward", ambiguous=np.zeros(len(index), bool)))


def _utc(index: Any) -> Ints:
    return np.asarray((index if index.tz is None else index.tz_convert("UTC")).as_unit("us").asi8)


def _shortest(ts: Ints) -> int:
    """Shortest rise; any number above 0 where there is none, which the checks of the bars refuse."""
    steps = np.diff(ts)
    return int(steps[steps > 0].min()) if (steps > 0).any() else 1


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
