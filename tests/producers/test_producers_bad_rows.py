from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from producers.feed import read_feed
from schemas.errors import FeedError

GOOD = ("A,2013-02-26,10,12,9,11,100,5.5", "A,2013-02-27,11,13,10,12,200,12")
LAST = "A,2013-03-01,11,13,10,12,300,12"

WriteFeed = Callable[..., Path]


@pytest.mark.parametrize(
    ("row", "reason", "message"),
    [
        ("A,2013-02-28,11,13,10", "fields", "row 4: fields is 5, expected 8 as in the header"),
        ("A,2013-02-28,11,13,10,12,1,12,9", "fields", "row 4: fields is 9, expected 8"),
        ("A,28/02/2013,11,13,10,12,1,12", "time", "row 4 (A): Date is '28/02/2013', expected ISO-8601"),
        ("A,,11,13,10,12,1,12", "time", "row 4 (A): Date is '', expected ISO-8601"),
        ("A,nan,11,13,10,12,1,12", "time", "row 4 (A): Date is 'nan', expected ISO-8601"),
        ("A,2013-02-28,abc,13,10,12,1,12", "number", "row 4 (A): Open is 'abc', expected a number"),
        ("A,2013-02-28,11,,10,12,1,12", "number", "row 4 (A): High is '', expected a number"),
        ("A,2013-02-28,11,13,10,12,many,12", "number", "row 4 (A): Volume is 'many', expected a number"),
        ("A,2013-02-28,11,13,NaN,12,1,12", "price", "row 4 (A): Low is nan, expected a finite price above 0"),
        ("A,2013-02-28,11,inf,10,12,1,12", "price", "row 4 (A): High is inf, expected a finite price above 0"),
        ("A,2013-02-28,0,13,10,12,1,12", "price", "row 4 (A): Open is 0.0, expected a finite price above 0"),
        ("A,2013-02-28,11,13,-10,12,1,12", "price", "row 4 (A): Low is -10.0, expected a finite price above 0"),
        ("A,2013-02-28,11,13,10,12,-1,12", "volume", "row 4 (A): Volume is -1.0, expected a finite number of at least"),
        ("A,2013-02-28,11,10,13,12,1,12", "high below low", "row 4 (A): High is 10.0, expected at least the low"),
        ("A,2013-02-28,14,13,10,12,1,12", "outside low to high", "row 4 (A): Open is 14.0, expected a price from low"),
        ("A,2013-02-28,11,13,10,9.9,1,12", "outside low to high", "row 4 (A): Close is 9.9, expected a price from low"),
        (
            "A,2013-02-27,11,13,10,12,1,12",
            "duplicate time",
            "row 4 (A): Date is 2013-02-27T00:00:00Z, expected a later",
        ),
        ("A,2013-02-25,11,13,10,12,1,12", "falling time", "row 4 (A): Date is 2013-02-25T00:00:00Z, expected a later"),
        ("A/B,2013-02-28,11,13,10,12,1,12", "symbol", "row 4 (A/B): Ticker is 'A/B', expected a name without '/'"),
        (",2013-02-28,11,13,10,12,1,12", "symbol", "row 4: Ticker is '', expected a name"),
    ],
)
def test_bad_row_is_named_or_left_out(write_feed: WriteFeed, row: str, reason: str, message: str) -> None:
    path = write_feed(*GOOD, row, LAST)
    with pytest.raises(FeedError) as caught:
        read_feed(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert f"in all: 1 (1 {reason}); mend the file, or leave them out: feed.on_bad_row=skip" in str(caught.value)
    assert "\n" not in str(caught.value)

    feed = read_feed(path, on_bad_row="skip")
    assert feed.bars["A"].volume.tolist() == [100, 200, 300]
    assert list(feed.bars) == ["A"]
    assert feed.skipped_by_reason == {reason: 1}
    assert (feed.skipped[0].row, feed.skipped[0].file) == (4, path.name)


def test_adjusted_checks_the_adjusted_close_and_raw_does_not(write_feed: WriteFeed) -> None:
    path = write_feed(*GOOD, "A,2013-02-28,11,13,10,12,1,0", LAST)
    assert len(read_feed(path)) == 4
    with pytest.raises(FeedError, match=r"row 4 \(A\): Adj Close is 0.0, expected a finite price above 0"):
        read_feed(path, adjusted=True)


def test_first_bad_row_is_named_with_a_count_of_all(write_feed: WriteFeed) -> None:
    bad = ["A,2013-02-25,1,1,1,1,1,1", "A,2013-02-28,x,1,1,1,1,1", "A,2013-02-28,1,1,1,1,1", "A,2013-02-24,1,1,1,1,1,1"]
    with pytest.raises(FeedError, match=r"row 4 \(A\): Date is 2013-02-25") as caught:
        read_feed(write_feed(*GOOD, *bad))
    assert "bad rows in all: 4 (2 falling time, 1 fields, 1 number)" in str(caught.value)


def test_time_of_a_bad_row_does_not_make_later_rows_fall(write_feed: WriteFeed) -> None:
    feed = read_feed(write_feed(*GOOD, "A,2099-01-01,1,nan,1,1,1,1", LAST), on_bad_row="skip")
    assert len(feed) == 3
    assert len(feed.skipped) == 1


def test_mixed_interval_shows_as_bars_that_overlap(write_feed: WriteFeed) -> None:
    path = write_feed(*GOOD, "A,2013-02-27T12:00:00,11,13,10,12,1,12", LAST)
    with pytest.raises(FeedError, match=r"row 4 \(A\): Date is 2013-02-27T12:00:00Z, expected the bar of 1d before"):
        read_feed(path, interval="1d")
    feed = read_feed(path, interval="1d", on_bad_row="skip")
    assert feed.bars["A"].volume.tolist() == [100, 200, 300]
    assert feed.skipped_by_reason == {"overlap": 1}


def test_skipping_every_row_is_an_error(write_feed: WriteFeed) -> None:
    with pytest.raises(
        FeedError, match=r"expected bars of A, got 2 bad rows and no good one; the first: feed.csv row 2"
    ):
        read_feed(write_feed("A,x,1,1,1,1,1,1", "A,2013-02-28,1,1,1,1,1"), on_bad_row="skip")
    with pytest.raises(FeedError, match=r"expected bars of any symbol, got 1 bad rows"):
        read_feed(write_feed("A,2013"), on_bad_row="skip")
    with pytest.raises(FeedError, match=r"expected bars of B, got 1 bad rows"):
        read_feed(write_feed(*GOOD, "B,x,1,1,1,1,1,1"), symbols=["A", "B"], on_bad_row="skip")


def test_missing_column_is_named(write_feed: WriteFeed) -> None:
    header = "Ticker,Date,Open,High,Close,Volume"
    with pytest.raises(FeedError, match=r"missing column Low; expected .* got Ticker,Date,Open,High,Close,Volume"):
        read_feed(write_feed("A,2013-02-28,1,1,1,1", header=header))
    with pytest.raises(FeedError, match="missing column Adj Close, which adjusted prices need"):
        read_feed(write_feed("A,2013-02-28,1,1,1,1", header="Ticker,Date,Open,High,Low,Close"), adjusted=True)
    with pytest.raises(FeedError, match="missing column Date, Open, High, Low, Close"):
        read_feed(write_feed(*GOOD, header=GOOD[0]))
    with pytest.raises(FeedError, match="expected one column Date, got Date and Timestamp"):
        read_feed(write_feed(header="Ticker,Date,Timestamp,Open,High,Low,Close"))


def test_missing_and_empty_files_are_named(tmp_path: Path, write_feed: WriteFeed) -> None:
    with pytest.raises(FeedError, match=r"no\.csv: expected a CSV file, found nothing"):
        read_feed(tmp_path / "no.csv")
    with pytest.raises(FeedError, match="expected a readable file, got: Is a directory"):
        read_feed(tmp_path)
    with pytest.raises(FeedError, match="expected rows below the header, got none"):
        read_feed(write_feed())
    for content in (b"", b"\n\n", gzip.compress(b"")):
        (tmp_path / "empty.csv").write_bytes(content)
        with pytest.raises(FeedError, match="got an empty file"):
            read_feed(tmp_path / "empty.csv")


def test_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "feed.csv.gz"
    whole = gzip.compress(
        "\n".join(("Ticker,Date,Open,High,Low,Close", *[",".join("a" * 6)] * 5_000)).encode(), mtime=0
    )
    for content, message in (
        (whole[: len(whole) // 2], "damaged"),
        (whole[:-8] + bytes(8), "damaged"),
        (b"\x1f\x8b" + bytes(100), "damaged"),
        (b"Ticker,\xff\xfe\xff", "expected UTF-8 text"),
        (b"PAR1\x00\x00,\x00\n", "missing column"),
        (b'"' + b"x" * 200_000, "expected CSV text"),
    ):
        path.write_bytes(content)
        with pytest.raises(FeedError, match=message):
            read_feed(path)


def test_long_values_are_cut_in_messages(write_feed: WriteFeed) -> None:
    with pytest.raises(FeedError) as caught:
        read_feed(write_feed("A,2013-02-28," + "9x" * 5_000 + ",1,1,1,1,1"))
    assert len(str(caught.value)) < 500
