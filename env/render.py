"""A picture of an episode, drawn with numpy alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Picture = NDArray[np.uint8]

HEIGHT, WIDTH = 400, 640
_MARGIN, _TITLE, _SPLIT = 10, 20, 260  # px: around, above the prices, and where the equity begins
_SCALE = 2  # px of a dot of the font

_PAPER, _INK, _GRID = (255, 255, 255), (40, 40, 40), (225, 225, 225)
_BUY, _SELL, _EQUITY = (0, 140, 60), (200, 30, 30), (90, 60, 160)
# One colour a symbol, from Okabe and Ito's palette, which colour-blind people tell apart; more symbols begin again.
_LINES = ((0, 114, 178), (230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (213, 94, 0))

# Rows of three dots from top to bottom, one octal digit a row, of each of the characters.
_CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ.,-+%/:_"
_ROWS = (
    "75557 26227 71747 71717 55711 74717 74757 71111 75757 75717 25755 65656 34443 65556 74647 74644 34553 55755 72227"
    " 11152 55655 44447 57755 65555 25552 65644 25563 65655 34216 72222 55557 55552 55775 55255 55222 71247 00002 00024"
    " 00700 02720 51245 11244 02020 00007"
)
_FONT = {character: _ROWS[6 * number : 6 * number + 5] for number, character in enumerate(_CHARACTERS)}


class Fills(NamedTuple):
    """Where the picture is marked, (m,) each."""

    at: NDArray[np.int64]
    """Index of the bar, into the rows of the prices."""
    symbol: NDArray[np.int64]
    """Column of the prices."""
    quantity: Floats
    """Signed: above 0 a buy, below 0 a sell."""
    price: Floats
    """Price paid."""


def draw(title: str, prices: Floats, equity: Floats, fills: Fills) -> Picture:
    """Draw the prices with their fills above, and the equity below.

    Buys are green and point up, sells are red and point down. Several symbols are drawn as growth since the first row.

    Args:
        title: One line; letters are drawn as capitals.
        prices: Closes from the start on, above 0, float64 (n, S), n > 0.
        equity: Equity at them, float64 (n,).
        fills: What is marked.

    Returns:
        uint8 (400, 640, 3), red, green and blue.
    """
    picture = np.full((HEIGHT, WIDTH, 3), _PAPER, dtype=np.uint8)
    _write(picture, title, _MARGIN, _MARGIN // 2)
    unit = prices[0] if prices.shape[1] > 1 else np.ones(1)
    shown, paid = prices / unit, fills.price / unit[fills.symbol]
    upper = _Panel(picture, _TITLE, _SPLIT, np.concatenate([shown.ravel(), paid]), len(prices))
    for number, column in enumerate(shown.T):
        upper.line(column, _LINES[number % len(_LINES)])
    buys = fills.quantity > 0
    for chosen, colour, direction in ((buys, _BUY, 1), (~buys, _SELL, -1)):
        upper.triangles(fills.at[chosen], paid[chosen], colour, direction)
    lower = _Panel(picture, _SPLIT, HEIGHT - _MARGIN, equity, len(equity))
    lower.line(equity, _EQUITY)
    return picture


class _Panel:
    """One pair of axes: rows top … bottom of the picture, values in a frame, ``count`` points across."""

    def __init__(self, picture: Picture, top: int, bottom: int, values: Floats, count: int) -> None:
        self._picture, self._count = picture, count
        self._top, self._bottom = top + _MARGIN, bottom - _MARGIN
        self._left, self._right = _MARGIN, WIDTH - 1 - _MARGIN
        low, high = float(values.min()), float(values.max())
        self._low, self._span = low, max(high - low, 1e-9 * max(abs(high), 1.0))
        for row, value in ((self._top, high), (self._bottom, low)):
            picture[row, self._left : self._right + 1] = _GRID
            _write(picture, f"{value:,.2f}", self._left, row + 2 if value == high else row - 5 * _SCALE - 2)

    def _rows(self, values: Floats) -> Floats:
        return self._bottom - (values - self._low) / self._span * (self._bottom - self._top)

    def _columns(self, at: NDArray[np.int64]) -> Floats:
        return np.asarray(self._left + at * ((self._right - self._left) / max(self._count - 1, 1)))

    def line(self, values: Floats, colour: tuple[int, int, int]) -> None:
        """Draw a line through all values; where several share a column, from the lowest to the highest of them."""
        rows, places = self._rows(values), self._columns(np.arange(len(values)))
        columns = np.arange(self._left, (self._right if len(values) > 1 else self._left) + 1)
        through = np.interp(columns, places, rows)
        low, high = through.copy(), through.copy()
        inside = np.rint(places).astype(np.int64) - self._left
        np.minimum.at(low, inside, rows)
        np.maximum.at(high, inside, rows)
        # Neighbours touch, so that a steep line has no gaps.
        low[1:], high[1:] = np.minimum(low[1:], through[:-1]), np.maximum(high[1:], through[:-1])
        height = np.arange(HEIGHT)[:, None]
        dots = (height >= np.floor(low)) & (height <= np.ceil(high))
        self._picture[:, columns[0] : columns[-1] + 1][dots] = colour

    def triangles(self, at: NDArray[np.int64], values: Floats, colour: tuple[int, int, int], direction: int) -> None:
        """Draw a triangle at each value, its tip on the value: direction 1 points up, -1 down."""
        depth, across = np.mgrid[0:7, -6:7]
        inside = np.abs(across) <= depth
        rows = np.rint(self._rows(values)).astype(np.int64)[:, None] + direction * depth[inside]
        columns = np.rint(self._columns(at)).astype(np.int64)[:, None] + across[inside]
        self._picture[np.clip(rows, 0, HEIGHT - 1), np.clip(columns, 0, WIDTH - 1)] = colour


def _write(picture: Picture, text: str, left: int, top: int) -> None:
    """Write text in capitals; a character that the font lacks is a space."""
    for number, letter in enumerate(text.upper()):
        glyph = np.array([[int(row) >> bit & 1 for bit in (2, 1, 0)] for row in _FONT.get(letter, "00000")], dtype=bool)
        dots = np.kron(glyph, np.ones((_SCALE, _SCALE), dtype=bool))
        place = left + number * 4 * _SCALE
        if place + 3 * _SCALE > WIDTH - _MARGIN:
            return
        picture[top : top + 5 * _SCALE, place : place + 3 * _SCALE][dots] = _INK
