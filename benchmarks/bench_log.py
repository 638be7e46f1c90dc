"""The log on Kafka: what publishing costs, how long an episode takes to SQL, and how fast the clients are.

* ``publish()`` of an episode's 50 trades with the broker up, frozen (SIGSTOP) and absent: it writes to the outbox
  alone, so the three should not differ. Medians in µs; the longest call of all in ms, after a warm-up.
* From the end of an episode to its trades in SQL: Publisher → outbox → forwarder → Kafka → consumer → local store.
* The real consumer from Kafka into the store: rows a second of its CPU.
* kafka-python, as Millrace uses it, beside confluent-kafka (where it is installed) on the same records, in turn.

Needs Java and, the first time, Maven. The last line is JSON.

    python benchmarks/bench_log.py [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from bench_consume import BATCH_ROWS, TRADES, publish, trades_of

from consumers.consumer import PASSWORD_VARIABLE, run_consumer
from consumers.sink import Sink
from eventlog.forwarder import drain, ensure_forwarder, stop_forwarder
from eventlog.log import Record
from eventlog.open_log import open_log
from eventlog.outbox import Publisher
from local.kafka_broker import BrokerAddress, start_broker, stop_broker
from local.store import StoreAddress, start_store, stop_store
from schemas.ids import Role, new_run_id
from schemas.topics import TOPICS, Topic

WARM_UP = 50
TIMEOUT_S = 60.0


def publish_costs(outbox: Path, calls: int) -> list[float]:
    """Seconds of each ``publish()``, 500 a second."""
    seconds = []
    with Publisher.open(outbox, run_id=new_run_id(), attempt=1, role=Role.RUNNER, worker_index=1) as publisher:
        for number in range(calls + WARM_UP):
            payload = trades_of(publisher.publisher_id.episode(0, number), number)
            began = time.perf_counter()
            publisher.publish(payload)
            seconds.append(time.perf_counter() - began)
            time.sleep(0.002)
    return seconds[WARM_UP:]


def measure_publish(root: Path, calls: int) -> dict[str, float]:
    """Three phases on one outbox, its forwarder running all the while."""
    broker = start_broker(root)
    with open_log(broker.log_address) as log:
        log.ensure_topics(list(TOPICS.values()), "millrace")
    outbox = root / "outbox"
    outbox.mkdir()
    ensure_forwarder(outbox, broker.log_address)
    up = publish_costs(outbox, calls)
    os.kill(broker.pid, signal.SIGSTOP)
    frozen = publish_costs(outbox, calls)
    os.kill(broker.pid, signal.SIGKILL)
    absent = publish_costs(outbox, calls)
    start_broker(root)
    assert drain(outbox, TIMEOUT_S), "everything arrives after the outage"
    stop_forwarder(outbox)
    return {
        **{
            f"publish_us_{name}": round(statistics.median(seconds) * 1e6, 1)
            for name, seconds in (("up", up), ("frozen", frozen), ("absent", absent))
        },
        "publish_ms_max": round(max(*up, *frozen, *absent) * 1e3, 2),
    }


def store_url(store: StoreAddress, database: str) -> str:
    """The store's address as the consumer takes it."""
    return f"http://{store.user}@{store.host}:{store.port}/{database}"


def measure_latency(root: Path, broker: BrokerAddress, store: StoreAddress, episodes: int) -> dict[str, float]:
    """Seconds from before ``publish()`` until a query sees all the episode's trades."""
    url, password = store_url(store, "latency"), store.password.get_secret_value()
    consumer = subprocess.Popen(
        [sys.executable, "-m", "consumers.consumer", "--log", broker.log_address, "--clickhouse-url", url],
        env={**os.environ, PASSWORD_VARIABLE: password},
        stderr=subprocess.DEVNULL,
    )
    outbox = root / "latency-outbox"
    outbox.mkdir()
    seconds = []
    try:
        with (
            Sink.connect(url, password) as sink,
            Publisher.open(outbox, run_id=new_run_id(), attempt=1, role=Role.RUNNER, worker_index=1) as publisher,
        ):
            sink.migrate()
            ensure_forwarder(outbox, broker.log_address)
            for number in range(episodes + 3):
                episode_id = publisher.publisher_id.episode(0, number)
                began = time.perf_counter()
                publisher.publish(trades_of(episode_id, number))
                query = "SELECT count() FROM latency.trades WHERE episode_id = {episode:String}"
                while sink.client.query(query, {"episode": episode_id}).result_rows[0][0] < TRADES:
                    assert time.perf_counter() - began < TIMEOUT_S, "the episode arrives"
                    time.sleep(0.01)
                seconds.append(time.perf_counter() - began)
        assert drain(outbox, TIMEOUT_S)
    finally:
        consumer.terminate()
        consumer.wait()
        stop_forwarder(outbox)
    steady = sorted(seconds[3:])
    return {
        "latency_s_p50": round(statistics.median(steady), 3),
        "latency_s_p99": round(steady[min(len(steady) - 1, int(len(steady) * 0.99))], 3),
    }


def consume_once(address: str, url: str, rows: int) -> float:
    """CPU seconds of the real consumer, from an uncommitted group to the end of the log."""
    stop = threading.Event()
    with open_log(address) as log, Sink.connect(url, os.environ[PASSWORD_VARIABLE]) as sink:
        sink.migrate()
        began = time.process_time()
        run_consumer(
            log, sink, group=f"bench-{os.getpid()}", batch_rows=BATCH_ROWS, stop=stop,
            on_progress=lambda progress: stop.set() if progress.rows >= rows else None,
        )  # fmt: skip
        return time.process_time() - began


def measure_consume(root: Path, store: StoreAddress, episodes: int, rounds: int) -> dict[str, float]:
    """Rows a second and core, each round in a process of its own on a broker of its own."""
    broker = start_broker(root / "consume")
    rows, rates = episodes * TRADES, []
    try:
        publish(broker.log_address, episodes)
        for number in range(rounds):
            url = store_url(store, f"consume_{number}")
            answer = subprocess.run(
                [sys.executable, __file__, "--consume", broker.log_address, url, str(rows)],
                env={**os.environ, PASSWORD_VARIABLE: store.password.get_secret_value()},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            rates.append(rows / float(answer.stdout.splitlines()[-1]))
    finally:
        stop_broker(root / "consume")
    return {"consume_trade_rows_per_s_core": round(statistics.median(rates))}


def produce_ours(address: str, topic: str, values: list[bytes]) -> None:
    """By the log's own producer."""
    with open_log(address) as log, log.producer() as producer:
        producer.send([Record(topic, b"%d" % (number % 100), value) for number, value in enumerate(values)])


def consume_ours(address: str, topic: str, values: list[bytes]) -> None:
    """By the log's own consumer."""
    with open_log(address) as log, log.consumer(f"ours-{time.time_ns()}", [topic]) as consumer:
        left = len(values)
        while left > 0:
            left -= len(consumer.poll(1.0, 5_000))


def produce_confluent(address: str, topic: str, values: list[bytes]) -> None:
    """By librdkafka with the same guarantees."""
    import confluent_kafka

    producer = confluent_kafka.Producer(
        {"bootstrap.servers": address.removeprefix("kafka:"), "enable.idempotence": True, "compression.type": "zstd",
         "linger.ms": 10, "partitioner": "murmur2_random", "queue.buffering.max.messages": 1_000_000}
    )  # fmt: skip
    for number, value in enumerate(values):
        producer.produce(topic, value, b"%d" % (number % 100))
    assert producer.flush(TIMEOUT_S) == 0


def consume_confluent(address: str, topic: str, values: list[bytes]) -> None:
    """By librdkafka in a group."""
    import confluent_kafka

    consumer = confluent_kafka.Consumer(
        {"bootstrap.servers": address.removeprefix("kafka:"), "group.id": f"theirs-{time.time_ns()}",
         "auto.offset.reset": "earliest", "enable.auto.commit": False}
    )  # fmt: skip
    consumer.subscribe([topic])
    left = len(values)
    while left > 0:
        left -= len(consumer.consume(5_000, 1.0))
    consumer.close()


def measure_clients(address: str, count: int, rounds: int) -> dict[str, float]:
    """Records of 2 kB a second of wall, connecting and joining included; medians over the rounds, in turn."""
    values = [json.dumps({"n": n, "pnl": [n * i / 7 for i in range(110)]}).encode()[:2_000] for n in range(count)]
    ways: dict[str, Callable[[str, str, list[bytes]], None]] = {"produce": produce_ours, "consume": consume_ours}
    try:
        import confluent_kafka  # noqa: F401 - beside ours only where it is installed
    except ImportError:
        print("confluent-kafka is not installed: kafka-python alone")
    else:
        ways |= {"confluent_produce": produce_confluent, "confluent_consume": consume_confluent}
    rates: dict[str, list[float]] = {way: [] for way in ways}
    with open_log(address) as log:
        for number in range(rounds):
            topics = log.ensure_topics([Topic(each, 1, 4, "key", -1) for each in ("ours", "theirs")], f"r{number}")
            for way, run in ways.items():
                began = time.perf_counter()
                run(address, topics[way.startswith("confluent")], values)
                rates[way].append(count / (time.perf_counter() - began))
    found: dict[str, Any] = {f"{way}_records_per_s": round(statistics.median(each)) for way, each in rates.items()}
    for way in ("produce", "consume"):
        if f"confluent_{way}" in rates:
            ratio = found[f"{way}_records_per_s"] / found[f"confluent_{way}_records_per_s"]
            found[f"{way}_ratio_to_confluent"] = round(ratio, 2)
    return found


def main() -> None:
    """Run the benchmark, or one measurement of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer calls and rounds: under a minute")
    parser.add_argument("--consume", nargs=3, metavar="ARG", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.consume:
        address, url, rows = given.consume
        print(consume_once(address, url, int(rows)))
        return
    calls, latencies, episodes, count, rounds = (500, 20, 1_000, 5_000, 1) if given.quick else (
        5_000, 200, 10_000, 40_000, 3,
    )  # fmt: skip
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        began = time.perf_counter()
        broker = start_broker(root)
        found["broker_start_s"] = round(time.perf_counter() - began, 2)
        store = start_store(root / "store")
        try:
            found |= measure_publish(root, calls)
            broker = start_broker(root)
            found["broker_rss_mb"] = round(psutil.Process(broker.pid).memory_info().rss / 2**20)
            print(json.dumps(found))
            found |= measure_latency(root, broker, store, latencies)
            found |= measure_consume(root, store, episodes, rounds)
            print(json.dumps(found))
            found |= measure_clients(broker.log_address, count, rounds)
        finally:
            stop_store(root / "store")
            stop_broker(root)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
