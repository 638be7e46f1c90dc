"""Results as people read them in a terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from clickhouse_connect.driver.client import Client
from rich import box
from rich.console import Console
from rich.table import Table

from analytics.integrity import IntegrityTable, check_run
from analytics.names import Answer, query

ALL = "all symbols"

# Policies as people call them.
_NAMES = {"buy_and_hold": "buy-and-hold", "sma_cross": "SMA cross"}


class Progress:
    """Prints lines with the seconds since it was made."""

    def __init__(self, out: Console) -> None:
        self._out = out
        self._begin = time.monotonic()

    def __call__(self, line: str) -> None:
        """Print one line."""
        self._out.print(f"[{time.monotonic() - self._begin:6.1f} s] {line}", markup=False, soft_wrap=True)


def print_result(out: Console, client: Client, run_id: str) -> bool:
    """The test results of a run, and its integrity table.

    Returns:
        Whether the table holds.

    Raises:
        StoreError: the store refused or did not answer.
    """
    with client:
        results = query(client, "test_results", {"run_id": run_id}).dicts()
        if results:
            out.print("\nThe test split, traded once by each policy under the same costs:")
            print_test_results(out, results)
        out.print()
        table = check_run(client, run_id)
        print_integrity(out, table)
        return table.ok


def print_next(out: Console, pasted: Callable[[str], str], run_id: str) -> None:
    """Commands to paste next. ``pasted`` makes one from its arguments."""
    # For people to paste: nothing here comes from outside.
    by_policy = f"SELECT symbol, policy, return, trades FROM test_results WHERE run_id = '{run_id}'"  # noqa: S608
    best_trades = (
        "SELECT symbol, side, entry_ts, exit_ts, net_pnl, exit_policy_version FROM trades "  # noqa: S608
        f"WHERE run_id = '{run_id}' AND split = 'test' AND policy = 'agent' ORDER BY net_pnl DESC LIMIT 10"
    )
    out.print("\nNext:")
    for arguments in (f"check {run_id}", f'query "{by_policy}"', f'query "{best_trades}"'):
        out.print(f"  {pasted(arguments)}", soft_wrap=True, markup=False)
    out.print()


def print_answer(out: Console, answer: Answer) -> None:
    """Any query's answer as a table."""
    numeric = {
        index
        for index in range(len(answer.columns))
        if any(isinstance(row[index], (int, float)) and not isinstance(row[index], bool) for row in answer.rows)
    }
    table = _table(answer.columns, numeric)
    for row in answer.rows:
        table.add_row(*(_text(value) for value in row))
    out.print(table)
    out.print(f"{len(answer.rows):,} row{'s' if len(answer.rows) != 1 else ''}")


def print_integrity(out: Console, table: IntegrityTable) -> None:
    """The integrity check of a run, line by line, and what it says."""
    columns = (
        "publisher", "event type", "emitted", "acked", "stored", "distinct", "rows declared", "rows stored", "",
    )  # fmt: skip
    shown = _table(columns, {2, 3, 4, 5, 6, 7})
    for line in table.lines:
        counts = (line.emitted, line.acknowledged, line.stored, line.distinct, line.declared_rows, line.stored_rows)
        # The run's id stands above the table: each publisher's own part is enough here.
        publisher = line.publisher.removeprefix(f"{table.run_id}.")
        shown.add_row(publisher, line.event_type, *(f"{n:,}" for n in counts), "ok" if line.ok else "DIFFERS")
    out.print(f"Integrity of run {table.run_id} (publisher: attempt.worker.restart.node)")
    out.print(shown)
    closed = table.publishers - len(table.open_publishers)
    out.print(
        f"publishers {table.publishers} ({closed} closed, {len(table.open_publishers)} open), "
        f"dead letters {table.dead_letters} ({table.dead_letters_resolved} resolved), "
        f"episodes that began and did not end: {table.abandoned_episodes} abandoned, {table.running_episodes} running",
        highlight=False,
        soft_wrap=True,
    )
    if table.unattributed_dead_letters:
        out.print(f"dead letters that name no run: {table.unattributed_dead_letters}")
    for problem in table.problems:
        out.print(f"DIFFERENCE: {problem}", soft_wrap=True)
    verdict = "holds: all that was published is stored, once." if table.ok else "FAILS: see the differences above."
    out.print(f"The integrity table {verdict}")


def print_test_results(out: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """The test split: agent beside baselines per symbol, and a sentence that says who won."""
    columns = ("symbol", "policy", "return", "pnl", "max drawdown", "trades", "costs")
    table = _table(columns, set(range(2, 7)))
    previous = None
    symbols = {row["symbol"] for row in rows} - {ALL}
    for row in rows:
        if row["symbol"] == ALL and len(symbols) == 1:
            continue  # The same figures again.
        if previous not in (None, row["symbol"]):
            table.add_section()
        previous = row["symbol"]
        table.add_row(
            str(row["symbol"]),
            str(row["policy"]),
            f"{row['return']:+.2%}",
            f"{row['pnl']:+,.2f}",
            f"{row['max_drawdown']:.2%}",
            f"{row['trades']:,}",
            f"{row['costs']:,.2f}",
        )
    out.print(table)
    out.print(verdict(rows), soft_wrap=True)


def verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """Whether the agent beat the baselines, by total return over all symbols, in one sentence."""
    returns = {str(row["policy"]): float(row["return"]) for row in rows if row["symbol"] == ALL}
    agent = returns.pop("agent", None)
    if agent is None:
        return "There is no result of the agent on the test split."
    beaten = [f"{_NAMES.get(name, name)} ({value:+.2%})" for name, value in returns.items() if agent > value]
    not_beaten = [f"{_NAMES.get(name, name)} ({value:+.2%})" for name, value in returns.items() if agent <= value]
    parts = [f"beat {_join(beaten)}"] if beaten else []
    parts += [f"did NOT beat {_join(not_beaten)}"] if not_beaten else []
    return f"On bars that it had never seen the agent returned {agent:+.2%} after costs: it {' and '.join(parts)}."


def _join(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def console(*, stderr: bool = False) -> Console:
    """Where people read: as wide as the terminal, and wide enough for our tables where there is none."""
    plain = Console(highlight=False, stderr=stderr)
    return plain if plain.is_terminal else Console(highlight=False, stderr=stderr, width=140)


def _table(columns: Sequence[str], numeric: set[int]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index in numeric else "left", overflow="fold")
    return table


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.isoformat(sep=" ").replace("+00:00", "Z")
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)
