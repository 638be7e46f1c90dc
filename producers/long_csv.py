"""The long CSV layout: one row a bar, the symbols in a column of their own, plain or gzip-compressed.

    Ticker,Date,Open,High,Low,Close,Volume,Adj Close
    AAPL,2000-03-01,118.56,132.06,118.5,130.31,9616100,4.186662803811

Columns in any order, names in any case; further columns are ignored. A file without the symbol's column holds one
symbol. Volume may be absent; Funding Rate may be there. This module reads text as numbers; whether they make sound bars
is ``checks``' matter.
"""

from __future__ import annotations

import csv
import gzip
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np

from producers.rows import PRICES, BadRow, Flags, Floats, Ints, Rows
from producers.times import EXPECTED as EXPECTED_TIME
from producers.times import parse_time
from schemas.errors import FeedError, InputError

_ALIASES = {
    "ticker": ("ticker", "symbol"),
    "date": ("date", "timestamp", "datetime"),
    **{name: (name,) for name in (*PRICES, "volume")},
    "adj close": ("adj close", "adj_close", "adjclose"),
    "funding rate": ("funding rate", "funding_rate", "fundingrate"),
}
_MAY_BE_BLANK = ("volume", "funding rate")
_GZIP_MAGIC = b"\x1f\x8b"
# Rows held as text at once: bounds the memory of a large file at some tens of MB beside its numbers.
_BLOCK = 50_000


def read_long_csv(path: Path, *, symbols: Sequence[str] | None, adjusted: bool) -> Rows:
    """Read a file of the long layout.

    Args:
        path: the file.
        symbols: the symbols to read; None reads all. Without a symbol's column, the one name of the file's symbol;
            None takes the file's name up to ``.csv``.
        adjusted: read the column Adj Close too.

    Raises:
        FeedError: the file cannot be opened or decompressed, is no CSV text, is empty, lacks a column, or lacks a
            symbol that was asked for.
    """
    with _open(path) as file:
        lines = csv.reader(file)
        rows = _rows_of(path, lines)
        reading = _Reading(path, _read_header(path, next(rows, []), adjusted), symbols)
        for fields in rows:
            reading.add(lines.line_num, fields)
    return reading.rows()


@contextmanager
def _open(path: Path) -> Iterator[TextIO]:
    """The file as text, with everything that can go wrong while it is read as a FeedError."""
    try:
        with path.open("rb") as raw:
            compressed = raw.read(2) == _GZIP_MAGIC
        opener = gzip.open if compressed else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield file
    except FileNotFoundError as error:
        raise FeedError(f"feed file {path}: expected a CSV file, found nothing there; check the path") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise FeedError(f"feed file {path}: expected whole gzip data, got damaged: {error}; copy it again") from error
    except UnicodeDecodeError as error:
        raise FeedError(f"feed file {path}: expected UTF-8 text, got other bytes; is it a CSV file?") from error
    except OSError as error:
        raise FeedError(f"feed file {path}: expected a readable file, got: {error.strerror or error}") from error


def _rows_of(path: Path, lines: Iterator[list[str]]) -> Iterator[list[str]]:
    """Rows as fields, without blank lines."""
    try:
        yield from filter(None, lines)
    except csv.Error as error:
        raise FeedError(f"feed file {path}: expected CSV text, got: {error}; is it a CSV file?") from error


@dataclass(frozen=True, slots=True)
class _Header:
    """Column to its place in a row and to the name that the file gives it, and the number of fields in a row."""

    places: dict[str, int]
    names: dict[str, str]
    width: int


def _read_header(path: Path, header: list[str], adjusted: bool) -> _Header:
    if not header:
        raise FeedError(f"feed file {path}: expected a header and rows, got an empty file")
    folded = [name.strip().lower() for name in header]
    places: dict[str, int] = {}
    for column, aliases in _ALIASES.items():
        found = [place for place, name in enumerate(folded) if name in aliases]
        if len(found) > 1:
            given = " and ".join(header[place].strip() for place in found)
            raise FeedError(f"feed file {path}: expected one column {column.title()}, got {given}; remove one")
        if found and (adjusted or column != "adj close"):
            places[column] = found[0]
    needed = ("date", *PRICES, "adj close") if adjusted else ("date", *PRICES)
    missing = [column.title() for column in needed if column not in places]
    if missing:
        raise FeedError(
            f"feed file {path}: missing column {', '.join(missing)}"
            f"{', which adjusted prices need' if missing == ['Adj Close'] else ''}; "
            f"expected a header such as Ticker,Date,Open,High,Low,Close,Volume,Adj Close, got {','.join(header)[:200]}"
        )
    return _Header(places, {column: header[place].strip() for column, place in places.items()}, len(header))


def _only_symbol(path: Path, symbols: Sequence[str] | None) -> str:
    if symbols is None:
        return path.name.removesuffix(".gz").removesuffix(".csv")
    if len(symbols) != 1:
        raise FeedError(
            f"feed file {path}: it has no column Ticker, so it holds one symbol; "
            f"expected the name of that one, got {', '.join(symbols) or 'none'}"
        )
    return symbols[0]


class _Reading:
    """What was read of one file so far: numbers in blocks, and the last rows still as text."""

    def __init__(self, path: Path, header: _Header, symbols: Sequence[str] | None) -> None:
        self._path = path
        self._header = header
        self._wanted = None if symbols is None else set(symbols)
        self._ticker = header.places.get("ticker")
        self._only = _only_symbol(path, symbols) if self._ticker is None else ""
        self._codes: dict[str, int] = {}
        self._others: set[str] = set()
        self._bad: list[BadRow] = []
        self._cut_times = 0
        self._texts: list[list[str]] = []
        self._lines: list[int] = []
        self._symbols: list[str] = []
        self._ints: dict[str, list[Ints]] = {column: [] for column in ("row", "code", "ts")}
        self._floats: dict[str, list[Floats]] = {
            column: [] for column in header.places if column not in ("ticker", "date")
        }

    def add(self, line: int, fields: list[str]) -> None:
        """Take a row, which ends on this line of the file."""
        if len(fields) != self._header.width:
            expected = f"{self._header.width} as in the header"
            self._bad.append(BadRow(self._path.name, line, "", "fields", str(len(fields)), expected, "fields"))
            return
        symbol = self._only if self._ticker is None else fields[self._ticker].strip()
        if self._wanted is not None and symbol not in self._wanted:
            self._others.add(symbol)
            return
        self._codes.setdefault(symbol, len(self._codes))
        self._texts.append(fields)
        self._lines.append(line)
        self._symbols.append(symbol)
        if len(self._texts) == _BLOCK:
            self._convert()

    def rows(self) -> Rows:
        """Everything that was read."""
        if not self._codes and not self._others and not self._bad:
            raise FeedError(f"feed file {self._path}: expected rows below the header, got none")
        if self._wanted is not None and (unknown := sorted(self._wanted - self._codes.keys())):
            known = ", ".join(sorted(self._others | self._codes.keys())) or "none"
            raise FeedError(f"feed file {self._path}: unknown symbol {', '.join(unknown)}; expected some of {known}")
        self._convert()
        ints = {column: np.concatenate(blocks) for column, blocks in self._ints.items()}
        floats = {column: np.concatenate(blocks) for column, blocks in self._floats.items()}
        return Rows(
            **ints,
            prices={name: floats[name] for name in PRICES},
            volume=floats.get("volume", np.full(len(ints["row"]), np.nan)),
            adj_close=floats.get("adj close"),
            funding_rate=floats.get("funding rate"),
            names=self._header.names,
            symbols=list(self._codes),
            bad=self._bad,
            cut_times=self._cut_times,
        )

    def _convert(self) -> None:
        """Turn the rows held as text into numbers; a row with a text that is none goes to the bad ones."""
        by_place = list(zip(*self._texts, strict=True)) or [()] * self._header.width
        texts = {column: by_place[place] for column, place in self._header.places.items()}
        good = np.ones(len(self._texts), dtype=np.bool_)
        ts, wrong, cut = _times(texts["date"])
        self._cut_times += cut
        self._reject(good, wrong, "date", texts["date"], EXPECTED_TIME, "time")
        floats: dict[str, Floats] = {}
        for column in self._floats:
            floats[column], wrong = _numbers(texts[column], blank=np.nan if column in _MAY_BE_BLANK else None)
            self._reject(good, wrong, column, texts[column], "a number", "number")
        for column, values in floats.items():
            self._floats[column].append(values[good])
        self._ints["row"].append(np.array(self._lines, dtype=np.int64)[good])
        self._ints["code"].append(np.array([self._codes[symbol] for symbol in self._symbols], dtype=np.int64)[good])
        self._ints["ts"].append(ts[good])
        self._texts, self._lines, self._symbols = [], [], []

    def _reject(
        self, good: Flags, wrong: list[int], column: str, texts: Sequence[str], expected: str, reason: str
    ) -> None:
        """Put the wrong places of the block, where they are not known yet, to the bad rows."""
        name = self._header.names[column]
        for place in wrong:
            if good[place]:
                good[place] = False
                row, symbol = self._lines[place], self._symbols[place]
                self._bad.append(BadRow(self._path.name, row, symbol, name, repr(texts[place]), expected, reason))


def _times(texts: Sequence[str]) -> tuple[Ints, list[int], int]:
    """Times in microseconds, the places of texts that are no time, and how many lost a part below a microsecond."""
    read: dict[str, tuple[int, bool]] = {}
    for text in set(texts):
        # Absent from `read` means no time; the row is then reported with its text.
        with suppress(InputError):
            read[text] = parse_time(text)
    wrong = [place for place, text in enumerate(texts) if text not in read] if len(read) < len(set(texts)) else []
    found = [read.get(text, (0, False)) for text in texts]
    return np.array([ts for ts, _ in found], dtype=np.int64), wrong, sum(cut for _, cut in found)


def _numbers(texts: Sequence[str], blank: float | None) -> tuple[Floats, list[int]]:
    """Numbers, and the places of texts that are none. ``blank`` is what an empty text counts as, if anything."""
    try:
        return np.fromiter(map(float, texts), dtype=np.float64, count=len(texts)), []
    except ValueError:
        values, wrong = np.full(len(texts), np.nan), []
    for place, text in enumerate(texts):
        try:
            values[place] = blank if blank is not None and not text.strip() else float(text)
        except ValueError:
            wrong.append(place)
    return values, wrong
