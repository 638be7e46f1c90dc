"""Each part of the flow as a process of its own: replay, train, forward, consume, and what runs before and after."""

from __future__ import annotations

import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from local.store import StoreAddress, store_address
from millrace.cli_options import ConfigOption, JsonOption, SetOption, print_json
from millrace.connections import configured_clickhouse, log_address, url_of
from millrace.settings import Settings, load_settings
from schemas.errors import InputError, LocalError, SettingsError

_SENT_S = 60.0


def replay(
    again: Annotated[str | None, typer.Option("--again", help="Publish under this name, as a new feed.")] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish the bars of a feed that the log does not hold yet: the bundled stocks, or feed.file."""
    from eventlog.open_log import open_log
    from millrace.pipeline import read_bars, replay_bars, with_feed
    from millrace.report import Progress, console
    from millrace.stopping import stop_signals

    settings = with_feed(load_settings(config, [*(set_ or ()), *([f"data.feed={again}"] if again else [])]))
    say = Progress(console(stderr=as_json))
    feed = read_bars(settings, say)
    with stop_signals() as stop, open_log(log_to_write(settings)) as log:
        result = replay_bars(settings, log, feed, say, stop)
    if result is not None and as_json:
        print_json(asdict(result))
    # Stopped in order, and repeated at will: that is no failure.
    raise typer.Exit(0)


def train(
    resume: Annotated[str | None, typer.Option("--resume", help="A run's id, or the folder of a checkpoint.")] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train on the bars of the log, and trade the test split; every event goes to the log."""
    from eventlog.forwarder_control import drain, pending
    from eventlog.open_log import open_log
    from millrace.pipeline import check_algorithm, train_agent, with_feed
    from millrace.report import Progress, console
    from millrace.stopping import DRAINED_BY_S, stop_signals
    from schemas.topics import TOPICS

    settings = with_feed(load_settings(config, set_ or ()))
    say = Progress(console(stderr=as_json))
    check_algorithm(settings)
    checkpoint = _checkpoint(settings, resume)
    outbox = settings.outbox_settings.directory
    with stop_signals() as stop, open_log(log_to_write(settings)) as log:
        log.ensure_topics(list(TOPICS.values()), settings.log.topic_prefix)
        result = train_agent(
            settings,
            log,
            say,
            stop,
            after_iteration=lambda: f"{pending(outbox):,} records in outboxes",
            resume_from=checkpoint,
        )
        if not drain(outbox, stop.left(DRAINED_BY_S) if stop.is_set() else _SENT_S):
            say(f"{pending(outbox):,} records are still in {outbox}; `millrace forward` sends them")
    if result is not None and as_json:
        print_json(asdict(result))
    # Stopped in order it has published all that happened.
    raise typer.Exit(0 if result is not None else 1)


def consume(config: ConfigOption = None, set_: SetOption = None) -> None:
    """Store the events of the log in ClickHouse, until SIGTERM or SIGINT. Several share the work."""
    from consumers.consumer import PASSWORD_VARIABLE
    from consumers.consumer import main as run

    settings = load_settings(config, set_ or ())
    address = _clickhouse(settings)
    os.environ[PASSWORD_VARIABLE] = address.password.get_secret_value()
    arguments = ["--log", log_to_write(settings), "--clickhouse-url", url_of(address)]
    raise typer.Exit(run([*arguments, "--prefix", settings.log.topic_prefix]))


def forward(
    wait: Annotated[float, typer.Option("--wait", help="Seconds to wait until all is sent.")] = 60.0,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send what outboxes still hold, after a crash or an outage. Exits with 1 where some of it could not be sent."""
    from eventlog.forwarder_control import drain, ensure_forwarder, pending
    from eventlog.open_log import open_log
    from millrace.report import Progress, console
    from millrace.stopping import stop_signals

    settings = load_settings(config, set_ or ())
    say = Progress(console(stderr=as_json))
    outbox = settings.outbox_settings.directory
    if not outbox.is_dir():
        raise InputError(f"outbox directory {outbox}: expected one, there is none; name it by outbox.directory")
    address = log_address(settings)
    with open_log(address):
        waiting = pending(outbox)
    say(f"{waiting:,} records in {outbox}, to {address}")
    ensure_forwarder(outbox, address)
    deadline = time.monotonic() + wait
    with stop_signals() as stop:
        while not (done := drain(outbox, 1.0)) and time.monotonic() < deadline and not stop.is_set():
            say(f"{pending(outbox):,} records to go")
    left = pending(outbox)
    say("all is sent" if done else f"{left:,} records are left, safe in {outbox}")
    if as_json:
        print_json({"waiting": waiting, "left": left, "sent": done})
    # Told to stop it has done what it was told: the forwarder goes on without it.
    raise typer.Exit(0 if done or stop.is_set() else 1)


def migrate(config: ConfigOption = None, set_: SetOption = None, as_json: JsonOption = False) -> None:
    """Bring ClickHouse's tables and views up to this version. A consumer does the same when it starts."""
    from consumers.sink import Sink

    address = _clickhouse(load_settings(config, set_ or ()))
    with Sink.connect(url_of(address), address.password.get_secret_value()) as sink:
        applied = sink.migrate()
    if as_json:
        print_json(applied)
    else:
        typer.echo("\n".join(f"applied {step}" for step in applied) or "all migrations were applied before")


def report(
    run: Annotated[str, typer.Argument(help="A run's id, the unique start of one, or: latest.")] = "latest",
    wait: Annotated[float, typer.Option("--wait", help="Seconds to wait until all of it is stored.")] = 0.0,
    as_command: Annotated[
        str, typer.Option("--as", help="How millrace is called where the next commands are pasted.")
    ] = "millrace",
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a run's result on the test split and its integrity table. Exits with 1 on any difference."""
    from analytics.integrity import check_run
    from analytics.names import query
    from analytics.runs import find_run
    from millrace.report import console, print_next, print_result
    from millrace.store_session import store_session

    deadline = time.monotonic() + wait
    with store_session(load_settings(config, set_ or ())) as client:
        while True:
            try:
                run_id = find_run(client, run)
                if check_run(client, run_id).ok or time.monotonic() > deadline:
                    break
            except InputError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(1.0)
        if as_json:
            table = check_run(client, run_id)
            results = query(client, "test_results", {"run_id": run_id}).dicts()
            print_json({"run_id": run_id, "test_results": results, "integrity": asdict(table)})
            holds = table.ok
        else:
            out = console()
            holds = print_result(out, client, run_id)
            print_next(out, lambda arguments: f"{as_command} {arguments}", run_id)
    raise typer.Exit(0 if holds else 1)


def log_to_write(settings: Settings) -> str:
    """Address of the log; a local one on SQLite is made where it is missing, as its first writer does."""
    if not settings.log.bootstrap_servers and settings.log.engine == "sqlite":
        from millrace.stack import make_state_dir

        make_state_dir(settings.state_dir)
        make_state_dir(settings.state_dir / "log")
    return log_address(settings)


def _clickhouse(settings: Settings) -> StoreAddress:
    address = configured_clickhouse(settings) or store_address(settings.state_dir)
    if address is None:
        raise LocalError(
            f"store of {settings.state_dir}: not running; start it with `millrace local up`, or name a ClickHouse "
            "server by clickhouse.url"
        )
    return address


def _checkpoint(settings: Settings, resume: str | None) -> Path | None:
    if resume is None:
        return None
    from trainer.checkpoints import SIDECAR, latest

    folder = Path(resume)
    if (folder / SIDECAR).is_file():
        return folder
    runs = settings.state_dir / "runs"
    found = sorted(runs.glob(f"{resume}*")) if resume.strip("./") == resume else []
    if len(found) != 1:
        known = ", ".join(path.name for path in sorted(runs.glob("*"))) or "none"
        raise SettingsError(
            f"--resume {resume!r}: expected a checkpoint's folder, or the unique start of a run's id in {runs}, which "
            f"has: {known}"
        )
    return latest(found[0])


def add_to(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(epilog="Example: millrace replay --set feed.file=prices.csv --set feed.speed=100000")(replay)
    app.command(epilog="Example: millrace train --set train.iterations=20 --set train.seed=7")(train)
    app.command(epilog="Example: millrace consume --set log.bootstrap_servers=kafka:9092")(consume)
    app.command(epilog="Example: millrace forward --wait 30")(forward)
    app.command(epilog="Example: millrace migrate --set clickhouse.url=http://clickhouse:8123")(migrate)
    app.command(epilog="Example: millrace report latest --wait 60")(report)
