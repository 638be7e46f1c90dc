"""Trade rows a second and core, from the log into the store.

Episodes of 50 trades each are put on a SQLite log and consumed into a local store by the real consumer. Beside it,
in the same minutes and on the same records, the plain way: json.loads, a tuple a trade, and clickhouse-connect's row
insert into the same table, in blocks of the same size, without checks, ledger or commits.

A core is a second of CPU of the consuming process; the store has its own. Both ways run in turn, several times, and the
medians count. The last line is JSON.

    python benchmarks/bench_consume.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import clickhouse_connect

from consumers.consumer import PASSWORD_VARIABLE, run_consumer
from consumers.rows import TABLES
from consumers.sink import Sink
from eventlog.log import Record
from eventlog.open_log import open_log
from local.store import start_store, stop_store
from schemas.events import Event
from schemas.ids import PublisherId, Role, new_run_id
from schemas.payloads import Trades
from schemas.times import wall_now
from schemas.topics import EVENT_TOPICS, TOPICS

TRADES = 50
BATCH_ROWS = 50_000
TOPIC = TOPICS["trades"].name()


def trades_of(episode_id: str, seed: int) -> Trades:
    """Fifty trades with numbers that do not repeat from one episode to the next."""
    each = range(TRADES)
    price = [100.0 + (seed * 37 + row * 11) % 1009 / 7 for row in each]
    return Trades(
        episode_id=episode_id, symbol=["AAPL"] * TRADES, split="train", policy="agent", iteration=1 + seed // 100,
        window_id="w1",
        side=[1 if (seed + row) % 2 else -1 for row in each], quantity=[10.0 + row / 3 for row in each],
        entry_ts=[1_400_000_000_000_000 + (seed + row) * 86_400_000_000 for row in each],
        exit_ts=[1_400_000_000_000_000 + (seed + row + 3) * 86_400_000_000 for row in each],
        entry_row=[seed + row for row in each], exit_row=[seed + row + 3 for row in each],
        entry_price=price, exit_price=[value * 1.01 for value in price], gross_pnl=[value / 9 for value in price],
        fee=[value / 1_000 for value in price], slippage=[value / 2_000 for value in price], borrow=[0.0] * TRADES,
        funding=[0.0] * TRADES, net_pnl=[value / 9 - value / 1_000 for value in price],
        bars=[3] * TRADES, exit_kind=["action"] * TRADES,
        entry_policy_version=[seed] * TRADES, exit_policy_version=[seed] * TRADES,
    )  # fmt: skip


def publish(address: str, episodes: int) -> None:
    """Put the episodes' trades on the log."""
    publisher = PublisherId(new_run_id(), 1, Role.RUNNER, 1, 0, "bench0")
    with open_log(address) as log, log.producer() as producer:
        log.ensure_topics([TOPICS[short] for short in (*EVENT_TOPICS, "dead-letters")], "millrace")
        for start in range(0, episodes, 500):
            records = []
            for number in range(start, min(start + 500, episodes)):
                payload = trades_of(publisher.episode(0, number), number)
                event = Event(
                    event_type="trades", run_id=publisher.run_id, attempt=1, publisher_id=str(publisher),
                    number=number + 1, rows=payload.rows, wall_time=wall_now(), data=payload,
                )  # fmt: skip
                key, value, headers = event.encode()
                records.append(Record(TOPIC, key, value, headers))
            producer.send(records)


def measure_consumer(address: str, url: str, password: str, rows: int, group: str) -> dict[str, float]:
    """The real consumer, from an uncommitted group to the end of the log."""
    stop = threading.Event()
    with open_log(address) as log, Sink.connect(url, password) as sink:
        wall, cpu = time.perf_counter(), time.process_time()
        done = run_consumer(
            log, sink, group=group, batch_rows=BATCH_ROWS, stop=stop,
            on_progress=lambda progress: stop.set() if progress.rows >= rows else None,
        )  # fmt: skip
        took = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    assert done.rows == rows, done
    return took


def measure_plain(address: str, url: str, password: str, rows: int) -> dict[str, float]:
    """json.loads, a tuple a trade, and an insert of rows."""
    table = TABLES["trades"]
    lists = [known.name for known in table.lists]
    scalars = [known.name for known in table.scalars]
    envelope = ("run_id", "attempt", "publisher_id", "number", "wall_time")
    client = clickhouse_connect.get_client(dsn=url, password=password, autogenerate_session_id=False, compress=False)
    with open_log(address) as log:
        wall, cpu = time.perf_counter(), time.process_time()
        done = 0
        gathered: list[tuple[Any, ...]] = []
        for partition, (start, end) in log.offsets(TOPIC).items():
            offset = start
            while offset < end:
                for record in log.read(TOPIC, partition, offset, end):
                    offset = record.offset + 1
                    body = json.loads(record.value)
                    data = body["data"]
                    shared = [*(body[name] for name in envelope), *(data[name] for name in scalars)]
                    gathered += [
                        (*shared, row_no, *row)
                        for row_no, row in enumerate(zip(*(data[name] for name in lists), strict=True))
                    ]
                if len(gathered) >= BATCH_ROWS or offset >= end:
                    client.insert("trades_rows", gathered, column_names=table.columns)
                    done += len(gathered)
                    gathered = []
        took = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    client.close()
    assert done == rows, done
    return took


def in_process_of_its_own(way: str, arguments: list[str], password: str) -> dict[str, float]:
    """One measurement in a fresh interpreter: nothing is warm, and its CPU is all its own."""
    command = [sys.executable, __file__, "--measure", way, *arguments]
    answer = subprocess.run(
        command, env={**os.environ, PASSWORD_VARIABLE: password}, stdout=subprocess.PIPE, text=True, check=True
    )
    measured: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return measured


def main() -> None:
    """Run the benchmark, or one measurement of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer episodes and rounds: under a minute")
    parser.add_argument("--measure", nargs=5, metavar="ARG", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        way, address, url, rows, group = given.measure
        password = os.environ[PASSWORD_VARIABLE]
        if way == "consumer":
            print(json.dumps(measure_consumer(address, url, password, int(rows), group)))
        else:
            print(json.dumps(measure_plain(address, url, password, int(rows))))
        return
    episodes, rounds = (4_000, 3) if given.quick else (20_000, 5)
    rows = episodes * TRADES
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "log").mkdir()
        address = f"sqlite:{folder}/log"
        publish(address, episodes)
        store = start_store(Path(folder) / "store")
        password = store.password.get_secret_value()
        url = f"http://{store.user}@{store.host}:{store.port}/"
        try:
            taken: dict[str, list[dict[str, float]]] = {"consumer": [], "plain": []}
            for number in range(rounds):
                for way, times in taken.items():
                    database = f"{way}_{number}"
                    with Sink.connect(url + database, password) as sink:
                        sink.migrate()
                    once = in_process_of_its_own(
                        way, [address, url + database, str(rows), "bench-" + database], password
                    )
                    times.append(once)
                    with Sink.connect(url + database, password) as sink:
                        counted = f"SELECT count(), uniqExact(episode_id, row_no) FROM {database}.trades"  # noqa: S608
                        stored = sink.client.query(counted).result_rows
                        sink.client.command(f"DROP DATABASE {database}")
                    assert [tuple(row) for row in stored] == [(rows, rows)], stored
                    core, wall = rows / once["cpu_s"], rows / once["wall_s"]
                    print(f"{way:9} {core:9,.0f} rows/s a core, {wall:9,.0f} rows/s of wall")
        finally:
            stop_store(Path(folder) / "store")
    rate = {
        way: {kind: statistics.median(rows / once[kind] for once in times) for kind in ("cpu_s", "wall_s")}
        for way, times in taken.items()
    }
    print(
        json.dumps(
            {
                "consume_trade_rows_per_s_core": round(rate["consumer"]["cpu_s"]),
                "consume_trade_rows_per_s_wall": round(rate["consumer"]["wall_s"]),
                "plain_trade_rows_per_s_core": round(rate["plain"]["cpu_s"]),
                "plain_trade_rows_per_s_wall": round(rate["plain"]["wall_s"]),
                "ratio_core": round(rate["consumer"]["cpu_s"] / rate["plain"]["cpu_s"], 2),
                "ratio_wall": round(rate["consumer"]["wall_s"] / rate["plain"]["wall_s"], 2),
                "rows": rows,
                "rounds": rounds,
            }
        )
    )


if __name__ == "__main__":
    main()
