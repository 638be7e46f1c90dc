"""The command line: ``millrace --help``."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tomli_w
import typer

from millrace import cli_features, cli_offline, cli_parts
from millrace.cli_log import dlq_app, topics_app
from millrace.cli_options import ConfigOption, JsonOption, SetOption, print_json
from millrace.settings import load_settings
from schemas.errors import MillraceError

app = typer.Typer(
    name="millrace",
    help="Train reinforcement-learning trading agents on streams of market data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
LogOption = Annotated[
    str | None, typer.Option("--log", help="Engine of the local log: sqlite or kafka (short for --set log.engine=…).")
]

local_app = typer.Typer(help="The engines on this machine: log, store and consumer.", no_args_is_help=True)
app.add_typer(local_app, name="local")

cli_parts.add_to(app)
cli_offline.add_to(app)
cli_features.add_to(app)
app.add_typer(topics_app, name="topics")
app.add_typer(dlq_app, name="dlq")


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    # Read by main(): the callback only declares and documents the option.
    del debug


@app.command(
    epilog="Example: millrace demo --set train.iterations=20 --set algorithm.name=PPO | "
    "own data: millrace demo --set feed.file=prices.csv"
)
def demo(log: LogOption = None, config: ConfigOption = None, set_: SetOption = None) -> None:
    """Run everything once: replay bars, train, trade the test split, and prove by query that nothing was lost."""
    from millrace.demo import run_demo

    overrides = _with_log(log, set_)
    raise typer.Exit(run_demo(load_settings(config, overrides), partial(pasted, config=config, set_=overrides)))


@app.command(epilog='Example: millrace query "SELECT policy, count() FROM episodes GROUP BY policy"')
def query(
    sql: Annotated[str, typer.Argument(help="A SELECT on the views: runs, episodes, trades, fills, steps …")],
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask ClickHouse, and print the answer as a table."""
    from analytics.names import ask
    from millrace.report import console, print_answer
    from millrace.store_session import store_session

    with store_session(load_settings(config, set_ or ())) as client:
        answer = ask(client, sql)
    if as_json:
        print_json(answer.dicts())
    else:
        print_answer(console(), answer)


@app.command(epilog="Example: millrace check latest")
def check(
    run: Annotated[str, typer.Argument(help="A run's id, the unique start of one, or: latest.")] = "latest",
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare what a run has published with what is stored. Exits with 1 on any difference."""
    from analytics.integrity import check_run
    from analytics.runs import find_run
    from millrace.report import console, print_integrity
    from millrace.store_session import store_session

    with store_session(load_settings(config, set_ or ())) as client:
        table = check_run(client, find_run(client, run))
    if as_json:
        print_json(asdict(table))
    else:
        print_integrity(console(), table)
    raise typer.Exit(0 if table.ok else 1)


@app.command(epilog="Example: millrace config --set algorithm.name=PPO > millrace.toml")
def config(config: ConfigOption = None, set_: SetOption = None, as_json: JsonOption = False) -> None:
    """Print the settings as they resolve (file < environment < --set), with secrets masked."""
    settings = load_settings(config, set_ or ()).masked()
    if as_json:
        print_json(settings)
    else:
        print(tomli_w.dumps(_without_none(settings)), end="")  # noqa: T201 - this command's result


@local_app.command(epilog="Example: millrace local up && millrace local status")
def up(log: LogOption = None, config: ConfigOption = None, set_: SetOption = None) -> None:
    """Start log, store and consumer; they run until `millrace local down`."""
    from millrace.report import console
    from millrace.stack import LocalStack

    stack = LocalStack(load_settings(config, _with_log(log, set_))).start(detached=True)
    address = stack.address
    out = console()
    out.print(f"store     {address.url}  user {address.user}, database {address.database}")
    if not stack.settings.clickhouse.url:
        out.print(f"password  in {stack.state_dir / 'store.password'}")
    out.print(f"log       {stack.log_address}")
    out.print(f"outbox    {stack.outbox}")
    if log is not None:
        out.print(f"for other commands in this terminal: export MILLRACE__LOG__ENGINE={log}")


@local_app.command(epilog="Example: millrace local status --json")
def status(config: ConfigOption = None, set_: SetOption = None, as_json: JsonOption = False) -> None:
    """Say what runs, and what waits to be stored."""
    from millrace.report import console
    from millrace.stack import LocalStack

    state = LocalStack(load_settings(config, set_ or ())).state()
    if as_json:
        print_json(asdict(state))
        return
    out = console()
    out.print(f"state directory  {state.state_dir}")
    out.print(f"store            {state.store or 'down'}")
    out.print(f"log              {state.log or 'none'}")
    out.print(f"consumer         {f'pid {state.consumer_pid}' if state.consumer_pid else 'down'}")
    out.print(f"forwarder        {'up' if state.forwarder else 'down (started when something is published)'}")
    on_log = "an unknown number" if state.log and state.lag is None else f"{state.lag or 0:,}"
    out.print(f"waiting          {state.waiting_in_outboxes:,} records in outboxes, {on_log} on the log")


@local_app.command(epilog="Example: millrace local down")
def down(config: ConfigOption = None, set_: SetOption = None) -> None:
    """Stop store, consumer and forwarder. Nothing is lost: what waits is sent and stored after the next start."""
    from millrace.stack import LocalStack

    LocalStack(load_settings(config, set_ or ())).stop(everything=True)


def _with_log(engine: str | None, set_: Sequence[str] | None) -> list[str]:
    return [*(set_ or ()), *([f"log.engine={engine}"] if engine else [])]


def pasted(arguments: str, *, config: Path | None, set_: Sequence[str]) -> str:
    """A command on the same engines as this one, for people to paste into this terminal."""
    same = [] if config is None else ["--config", str(config)]
    for override in set_:
        if override.startswith(("local.", "clickhouse.")) and "password" not in override:
            same += ["--set", override]
    return " ".join([invocation(), arguments, *map(shlex.quote, same)])


def invocation() -> str:
    """How this command was called, for commands to be pasted: ``millrace``, or its path where that is not on PATH."""
    called = Path(sys.argv[0])
    if called.suffix == ".py":
        return f"{shlex.quote(sys.executable)} -m millrace.cli"
    found = shutil.which("millrace")
    if found and Path(found).resolve() == called.resolve():
        return "millrace"
    path = os.path.relpath(called)
    return shlex.quote(path if not path.startswith("..") else str(called))


def _without_none(value: Any) -> Any:
    # TOML has no null: a setting that is not set is left out.
    if isinstance(value, dict):
        return {name: _without_none(part) for name, part in value.items() if part is not None}
    return value


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; one clear line for an error, its traceback only with ``--debug``."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    # Also accepted behind the command, where people put it.
    given = [argument for argument in given if argument != "--debug"]
    try:
        app(args=given, prog_name="millrace")
    except MillraceError as error:
        if debug:
            raise
        print(f"millrace: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201 - the one line
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
