from __future__ import annotations

import gzip
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from producers.feed import Bars, read_feed
from schemas.errors import FeedError, InputError
from schemas.times import DAY, HOUR, from_iso

HEADER = "Ticker,Date,Open,High,Low,Close,Volume,Adj Close"
TWO_DAYS = ("A,2013-02-28,10,12,9,11,100,5.5", "A,2013-03-01,11,13,10,12,200,12")

WriteFeed = Callable[..., Path]


def test_daily_bar_becomes_known_at_the_end_of_its_day(write_feed: WriteFeed) -> None:
    feed = read_feed(write_feed(*TWO_DAYS))
    bars = feed.bars["A"]
    assert (bars.symbol, bars.interval, bars.adjusted, len(bars)) == ("A", "1d", False, 2)
    assert bars.ts_open.tolist() == [from_iso("2013-02-28"), from_iso("2013-03-01")]
    assert bars.ts_close.tolist() == [from_iso("2013-03-01"), from_iso("2013-03-02")]
    assert (bars.open.tolist(), bars.high.tolist()) == ([10, 11], [12, 13])
    assert (bars.low.tolist(), bars.close.tolist(), bars.volume.tolist()) == ([9, 10], [11, 12], [100, 200])
    assert {bars.ts_open.dtype, bars.ts_close.dtype} == {np.dtype(np.int64)}


def test_arrays_are_read_only(write_feed: WriteFeed) -> None:
    bars = read_feed(write_feed(*TWO_DAYS)).bars["A"]
    with pytest.raises(ValueError, match="read-only"):
        bars.close[0] = 1.0


def test_adjusted_scales_prices_and_volume_inversely(write_feed: WriteFeed) -> None:
    bars = read_feed(write_feed(*TWO_DAYS), adjusted=True).bars["A"]
    assert bars.adjusted
    assert bars.open.tolist() == [5, 11]
    assert bars.high.tolist() == [6, 13]
    assert bars.low.tolist() == [4.5, 10]
    assert bars.close.tolist() == [5.5, 12]
    assert bars.volume.tolist() == [200, 200]


def test_header_names_in_any_case_and_order_with_further_columns(write_feed: WriteFeed) -> None:
    path = write_feed(
        "11,x,9,12,10,2013-02-28T10:00:00Z,A", "12,y,10,13,11,2013-02-28T11:00:00Z,A",
        header=" CLOSE ,Note,low,HIGH,open,Timestamp,symbol",
    )  # fmt: skip
    bars = read_feed(path).bars["A"]
    assert bars.interval == "1h"
    assert bars.open.tolist() == [10, 11]
    assert bars.close.tolist() == [11, 12]
    assert np.isnan(bars.volume).all()


@pytest.mark.parametrize("name", ["Funding Rate", "funding_rate", "FundingRate"])
def test_funding_rates_are_read_and_empty_where_none_is_due(write_feed: WriteFeed, name: str) -> None:
    header = f"Ticker,Date,Open,High,Low,Close,Volume,{name}"
    rows = ("A,2024-01-01,1,1,1,1,1,0.0001", "A,2024-01-02,1,1,1,1,1,", "A,2024-01-03,1,1,1,1,1,-2e-4")
    rates = read_feed(write_feed(*rows, header=header)).bars["A"].funding_rate
    assert rates is not None
    assert [None if np.isnan(rate) else rate for rate in rates.tolist()] == [0.0001, None, -0.0002]
    with pytest.raises(ValueError, match="read-only"):
        rates[0] = 1.0
    with pytest.raises(FeedError, match=f"row 2 .A.: {name} is inf, expected a finite number, or nothing"):
        read_feed(write_feed("A,2024-01-01,1,1,1,1,1,inf", *rows[1:], header=header))


def test_a_file_without_funding_rates_has_none(write_feed: WriteFeed) -> None:
    rows = ("A,2024-01-01,1,1,1,1,1,1", "A,2024-01-02,1,1,1,1,1,1")
    assert read_feed(write_feed(*rows)).bars["A"].funding_rate is None


def test_gzip_is_known_by_its_content_and_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    path = tmp_path / "feed.csv"
    path.write_bytes(gzip.compress(("\ufeff" + "\r\n".join((HEADER, *TWO_DAYS, ""))).encode()))
    assert list(read_feed(path).bars) == ["A"]


def test_blank_lines_are_no_rows_but_count_as_lines(write_feed: WriteFeed) -> None:
    with pytest.raises(FeedError, match="row 5 "):
        read_feed(write_feed(TWO_DAYS[0], "", "", "A,2013-03-01,nan,13,10,12,200,12", ""))


def test_symbol_of_a_file_without_that_column_is_told_or_the_files_name(write_feed: WriteFeed) -> None:
    rows, header = ("1735689600.0,1,1,1,1,", "1735689660.0,1,1,1,1,7"), "Timestamp,Open,High,Low,Close,Volume"
    path = write_feed(*rows, header=header, name="BRK.B.csv")
    assert list(read_feed(path).bars) == ["BRK.B"]
    bars = read_feed(path, symbols=["X"]).bars["X"]
    assert bars.interval == "1m"
    assert np.isnan(bars.volume[0])
    assert bars.volume[1] == 7
    with pytest.raises(FeedError, match=r"no column Ticker.*got X, Y"):
        read_feed(path, symbols=["X", "Y"])


def test_only_the_symbols_asked_for_are_read_and_checked(write_feed: WriteFeed) -> None:
    path = write_feed(*TWO_DAYS, "B,2013-03-01,bad,13,10,12,200,12", "C,2013-03-01,1,1,1,1,1,1")
    assert list(read_feed(path, symbols=["A"]).bars) == ["A"]
    with pytest.raises(FeedError, match="unknown symbol Z; expected some of A, B, C"):
        read_feed(path, symbols=["A", "Z"])
    with pytest.raises(FeedError, match="expected at least one symbol"):
        read_feed(path, symbols=[])


@pytest.mark.parametrize(
    ("step_s", "name"),
    [(60, "1m"), (300, "5m"), (900, "15m"), (1800, "30m"), (3600, "1h"), (14400, "4h"), (86400, "1d"), (604800, "1w")],
)
def test_interval_is_the_smallest_step_of_the_symbol(write_feed: WriteFeed, step_s: int, name: str) -> None:
    times = [1735689600 + step_s * steps for steps in (0, 5, 6, 9)]
    bars = read_feed(write_feed(*(f"A,{time},1,1,1,1,1,1" for time in times))).bars["A"]
    assert bars.interval == name
    assert (bars.ts_close - bars.ts_open == step_s * 1_000_000).all()


def test_interval_that_cannot_be_inferred_is_asked_for(write_feed: WriteFeed) -> None:
    one = write_feed(TWO_DAYS[0])
    with pytest.raises(FeedError, match=r"A has one bar.*data.interval=1d"):
        read_feed(one)
    assert read_feed(one, interval="1d").bars["A"].ts_close.tolist() == [from_iso("2013-02-28") + DAY]
    odd = write_feed("A,2013-03-01T10:00:00,1,1,1,1,1,1", "A,2013-03-01T10:02:00,1,1,1,1,1,1")
    with pytest.raises(FeedError, match=r"interval of A cannot be inferred.*got 120 s.*data.interval=1d"):
        read_feed(odd)
    assert read_feed(odd, interval="2m").bars["A"].interval == "2m"
    with pytest.raises(InputError, match="interval 'day'"):
        read_feed(odd, interval="day")


def test_symbols_may_have_different_intervals(write_feed: WriteFeed) -> None:
    path = write_feed(*TWO_DAYS, "B,2013-03-01T10:00:00,1,1,1,1,1,1", "B,2013-03-01T11:00:00,1,1,1,1,1,1")
    assert [bars.interval for bars in read_feed(path).bars.values()] == ["1d", "1h"]


def test_nanoseconds_are_floored_and_counted(write_feed: WriteFeed) -> None:
    path = write_feed(*(f"A,{(1735689600 + hour * 3600) * 10**9 + hour},1,1,1,1,1,1" for hour in range(3)))
    feed = read_feed(path)
    assert feed.cut_times == 2
    assert np.diff(feed.bars["A"].ts_open).tolist() == [HOUR, HOUR]


def test_rounding_noise_of_an_adjusting_source_widens_high_and_low(write_feed: WriteFeed) -> None:
    path = write_feed("A,2013-02-28,10,10.999999999999998,9.5,11,1,1", "A,2013-03-01,9.999999999999998,11,10,10.5,1,1")
    bars = read_feed(path).bars["A"]
    assert bars.high.tolist() == [11, 11]
    assert bars.low.tolist() == [9.5, 9.999999999999998]


prices = st.floats(0.01, 1e6)
bar = st.tuples(prices, prices, prices, prices, st.integers(0, 10**12), prices)


def sound(values: tuple[float, float, float, float, int, float]) -> tuple[float, ...]:
    low, first, second, high = sorted(values[:4])
    return (first, high, low, second, *values[4:])


@st.composite
def series(draw: st.DrawFn) -> list[tuple[str, int, tuple[float, ...]]]:
    """Rows (symbol, day, values) of up to three symbols, rising in time within each and mixed over all."""
    rows: list[tuple[str, int, tuple[float, ...]]] = []
    for symbol in draw(st.sets(st.sampled_from("ABC"), min_size=1)):
        days = sorted(draw(st.sets(st.integers(0, 400), min_size=1, max_size=8)))
        rows += [(symbol, day, sound(draw(bar))) for day in days]
    order = draw(st.permutations(range(len(rows))))
    places = {symbol: sorted(i for i in order if rows[i][0] == symbol) for symbol in {row[0] for row in rows}}
    return [rows[places[rows[i][0]].pop(0)] for i in order]


def text_of(row: tuple[str, int, tuple[float, ...]]) -> str:
    symbol, day, values = row
    date = np.datetime64("2013-01-01") + day
    return ",".join((symbol, str(date), *map(repr, values)))


def read_text(lines: list[str], **arguments: object) -> tuple[dict[str, Bars], list[int]]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "feed.csv")
        path.write_text("\n".join((HEADER, *lines)), encoding="utf-8")
        feed = read_feed(path, interval="1d", **arguments)  # type: ignore[arg-type]
    return dict(feed.bars), [bad.row for bad in feed.skipped]


@settings(max_examples=60, deadline=None)
@given(series())
def test_every_sound_row_comes_out_once_in_order_and_unchanged(rows: list[tuple[str, int, tuple[float, ...]]]) -> None:
    bars, _ = read_text([text_of(row) for row in rows])
    got = {
        (symbol, int(ts - from_iso("2013-01-01")) // DAY): values
        for symbol, each in bars.items()
        for ts, *values in zip(each.ts_open, each.open, each.high, each.low, each.close, each.volume, strict=True)
    }
    assert got == {(symbol, day): list(values[:5]) for symbol, day, values in rows}
    assert all((np.diff(each.ts_close) > 0).all() for each in bars.values())


@settings(max_examples=60, deadline=None)
@given(series())
def test_adjusting_keeps_shape_turnover_and_adjusted_returns(rows: list[tuple[str, int, tuple[float, ...]]]) -> None:
    raw, _ = read_text([text_of(row) for row in rows])
    adjusted, _ = read_text([text_of(row) for row in rows], adjusted=True)
    for symbol, bars in adjusted.items():
        before = raw[symbol]
        told = np.array([values[5] for name, _, values in rows if name == symbol])
        np.testing.assert_allclose(bars.close, told, rtol=1e-12)
        np.testing.assert_allclose(bars.open / bars.close, before.open / before.close, rtol=1e-12)
        np.testing.assert_allclose(bars.close * bars.volume, before.close * before.volume, rtol=1e-12)
        # Exactly, since the log refuses a bar whose open or close lies outside.
        assert (bars.low <= np.minimum(bars.open, bars.close)).all()
        assert (bars.high >= np.maximum(bars.open, bars.close)).all()


@settings(max_examples=60, deadline=None)
@given(series(), st.data())
def test_skipping_gives_the_file_without_its_bad_rows(
    rows: list[tuple[str, int, tuple[float, ...]]], data: st.DataObject
) -> None:
    lines = [text_of(row) for row in rows]
    bad = ["A,2013-01-01,1,1", "B,x,1,1,1,1,1,1", "A,2013-05-01,1,1,1,-1,1,1", "C,2013-05-01,1,1,2,1,1,1", "A" * 9]
    mixed, at = [], []
    for line in lines:
        for extra in data.draw(st.lists(st.sampled_from(bad), max_size=2)):
            mixed.append(extra)
            at.append(len(mixed) + 1)
        mixed.append(line)
    expected, _ = read_text(lines)
    got, skipped = read_text(mixed, on_bad_row="skip")
    assert skipped == at
    assert got.keys() == expected.keys()
    for symbol, bars in got.items():
        assert bars.ts_close.tolist() == expected[symbol].ts_close.tolist()
        assert bars.close.tolist() == expected[symbol].close.tolist()
