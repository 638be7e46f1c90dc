from __future__ import annotations

import hashlib
from importlib import resources

import numpy as np
import pandas as pd
import pytest

from producers.bundled import bundled_feed_path
from producers.feed import read_feed
from schemas.times import DAY, from_iso

SHA256 = "5abadf99b2d394f920120a27de6f0df129859d71d4cfb0bf661bcc99446ab1fd"
ROWS = {"AAPL": 3270, "FB": 196, "GOOG": 2148, "IBM": 3270, "MSFT": 3270}


def test_bundled_file_is_the_one_that_its_notice_names() -> None:
    assert hashlib.sha256(bundled_feed_path().read_bytes()).hexdigest() == SHA256
    notice = resources.files("producers.data").joinpath("NOTICE").read_text(encoding="utf-8")
    assert "Copyright (c) Bokeh Contributors" in notice
    assert "BSD 3-Clause" in notice
    assert "public domain" in notice


@pytest.mark.parametrize("adjusted", [False, True])
def test_bundled_bars_are_clean_and_complete(adjusted: bool) -> None:
    feed = read_feed(bundled_feed_path(), adjusted=adjusted, on_bad_row="error")
    assert {symbol: len(bars) for symbol, bars in feed.bars.items()} == ROWS
    assert len(feed) == sum(ROWS.values())
    assert feed.skipped == ()
    assert feed.source == f"stocks.csv.gz sha256:{SHA256[:12]}"
    for bars in feed.bars.values():
        assert (bars.interval, bars.adjusted) == ("1d", adjusted)
        assert (bars.ts_close - bars.ts_open == DAY).all()
        assert bars.ts_open[-1] == from_iso("2013-03-01")


def test_bundled_bars_equal_what_pandas_reads() -> None:
    table = pd.read_csv(bundled_feed_path(), parse_dates=["Date"])
    for adjusted in (False, True):
        for symbol, bars in read_feed(bundled_feed_path(), adjusted=adjusted).bars.items():
            rows = table[table["Ticker"] == symbol]
            factor = rows["Adj Close"] / rows["Close"] if adjusted else 1.0
            epoch = np.datetime64(0, "us")
            assert ((rows["Date"].to_numpy("datetime64[us]") - epoch).astype(np.int64) == bars.ts_open).all()
            for name in ("Open", "High", "Low", "Close"):
                np.testing.assert_allclose(getattr(bars, name.lower()), rows[name] * factor, rtol=1e-15)
            np.testing.assert_allclose(bars.volume, rows["Volume"] / factor, rtol=1e-15)


def test_adjusting_takes_the_split_out_of_the_prices() -> None:
    # Apple split two for one before 2005-02-28: https://investor.apple.com/faq/
    before, after = from_iso("2005-02-25"), from_iso("2005-02-28")
    jumps = []
    for adjusted in (False, True):
        bars = read_feed(bundled_feed_path(), symbols=["AAPL"], adjusted=adjusted).bars["AAPL"]
        prices = dict(zip(bars.ts_open.tolist(), bars.close.tolist(), strict=True))
        jumps.append(prices[after] / prices[before])
    assert jumps[0] == pytest.approx(0.5, abs=0.02)
    assert jumps[1] == pytest.approx(1.0, abs=0.02)
