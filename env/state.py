"""What the market model remembers, field by field: the layout that its compiled step works on."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np


def _layout(**fields: Any) -> np.dtype[Any]:
    return np.dtype(list(fields.items()), align=True)


_F, _I, _B = np.float64, np.int64, np.bool_

ACCOUNT = _layout(
    # Rows of the bars: of the current close, of the first observation, and the last one that may be reached.
    row=_I,
    start=_I,
    end=_I,
    cash=_F,
    equity=_F,
    highest=_F,  # equity of the episode so far
    # Before the last step.
    equity_before=_F,
    highest_before=_F,
    reward=_F,  # of the last step, unscaled
    # Moving averages of the return and its square, of the reward "differential_sharpe".
    mean=_F,
    square=_F,
    # Totals of the episode.
    total_reward=_F,
    fee=_F,
    slippage=_F,
    borrow=_F,
    funding=_F,
    interest=_F,
    turnover=_F,  # traded notional, in money
    cancelled=_I,  # orders
    exposed=_I,  # closes with a position
    stale=_I,  # steps in which a bar was missing
    fills=_I,  # written down
    trades=_I,  # closed
    opened=_I,  # trades begun
    terminated=_B,
    ended=_B,
    waits=_B,  # sits out the next step: its episode begins there
)
"""One environment."""

HOLDING = _layout(
    position=_F,  # signed units
    chosen=_F,  # the discrete target that was chosen last
    carried=_F,  # signed units left of an order
    # Of the open trade: any number without one.
    cost=_F,  # average cost of what is held
    best=_F,  # best price since the entry, times -1 for a short
    entry_row=_I,
    trade=_I,  # its number among those begun
    largest=_F,  # units held
    paid=_F,  # signed units times prices
    units_in=_F,
    paid_in=_F,
    units_out=_F,
    paid_out=_F,
    fee=_F,
    slippage=_F,
    borrow=_F,
    funding=_F,
    side=_I,  # 1 or -1
)
"""One environment and symbol."""

ORDER = _layout(
    new=_B,
    target=_B,  # a share of equity is wanted; else units
    weight=_F,  # that share
    quantity=_F,  # signed units wanted
    side=_F,  # 1.0 to buy, -1.0 to sell, 0.0 for neither
    price=_F,
    goal=_F,  # signed units to hold, of a target
    order=_F,  # signed units to trade
    filled=_F,  # signed units that the bar has of them
    dropped=_B,  # not worth sending
)
"""One symbol, while a step looks at it."""

STEP = _layout(equity=_F, reward=_F, cash=_F, interest=_F)
"""One environment and step, written down at the close."""

HELD = _layout(position=_F, borrow=_F, funding=_F)
"""One environment, step and symbol."""

FILL = _layout(
    quantity=_F,
    price=_F,
    reference=_F,
    fee=_F,
    slippage=_F,
    after=_F,
    step=np.int32,
    trade=np.int32,  # that it opens, changes or closes, among those begun; of a reversal the one that it closes
    symbol=np.int16,
    kind=np.int8,
    deed=np.int8,  # the kind that its quantity makes it
    long=np.int8,  # 1 where the side that it enters, changes or leaves is long
)
"""One execution: a line of the cache."""

TRADE = _layout(
    quantity=_F,
    entry_price=_F,
    exit_price=_F,
    gross_pnl=_F,
    fee=_F,
    slippage=_F,
    borrow=_F,
    funding=_F,
    trade=np.int32,
    entry_step=np.int32,
    exit_step=np.int32,
    symbol=np.int16,
    side=np.int8,
    exit_kind=np.int8,
)
"""One closed trade."""

RULES = _layout(
    # Actions.
    discrete=_B,
    holds=_B,  # choice 0 is what was chosen before
    quantities=_B,
    by_action=_B,  # distances of protective orders
    each=_I,  # numbers of an action for a symbol
    band=_F,
    # Execution.
    lot=_F,
    min_notional=_F,
    volume_share=_F,  # 0.0: all
    carries=_B,
    # Protective orders: their distances, 0.0 where there is none, and their places behind the main number of an action.
    stop_loss=_F,
    take_profit=_F,
    trailing_stop=_F,
    stop_at=_I,
    profit_at=_I,
    trail_at=_I,
    # Costs.
    fee=_F,
    fee_fixed=_F,
    slippage=_F,
    half_spread=_F,
    impact=_F,
    borrow=_F,
    interest=_F,
    # Margin.
    leverage=_F,
    maintenance=_F,
    # Rewards and the end.
    reward=_I,
    decay=_F,
    penalty=_F,
    scale=_F,  # of what the learner sees
    liquidate_at_end=_B,
)
"""The settings that a step reads."""

FRAME = _layout(
    rules=RULES,
    envs=_I,  # B
    symbols=_I,  # S, 1 without a portfolio
    size=_I,  # of an action
    window=_I,
    columns=_I,  # features of a bar
    rows=_I,  # of the features
    parts=_I,  # position features
    stride=_I,  # from one symbol's bar to the next one's
    steps_room=_I,
    fills_room=_I,
    held_room=_I,  # 0 where steps are not recorded
    choices=_I,  # targets
    # Addresses: the bars, ...
    open=_I,
    high=_I,
    low=_I,
    close=_I,
    volume=_I,
    funding=_I,
    tradable=_I,
    features=_I,
    # ... what actions mean and may be, ...
    targets=_I,
    given=_I,
    low_bound=_I,
    high_bound=_I,
    # ... what observations hold, and what is remembered.
    part_codes=_I,
    accounts=_I,
    holdings=_I,
    orders=_I,
    steps=_I,
    actions=_I,
    held=_I,
    fills=_I,
    trades=_I,
)
"""All that a step needs."""

KINDS = np.array(
    [
        "entry",
        "increase",
        "reduce",
        "exit",
        "reversal",
        "stop_loss",
        "trailing_stop",
        "take_profit",
        "liquidation",
        "end_of_data",
    ]
)
"""Kinds of fills by number."""


def stamp() -> str:
    """A hash of all layouts above: eight hex digits. ``env.kernel`` holds the one that it was compiled for."""
    layouts = {name: value for name, value in globals().items() if isinstance(value, np.dtype)}
    return hashlib.sha256(repr({name: _told(layouts[name]) for name in sorted(layouts)}).encode()).hexdigest()[:8]


def _told(layout: np.dtype[Any]) -> Any:
    if layout.fields is None:
        return layout.str
    places = {name: (field[1], _told(field[0])) for name, field in layout.fields.items()}
    return layout.itemsize, places
