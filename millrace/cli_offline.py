"""Recorded episodes out of ClickHouse: ``millrace export-episodes``, for BC and MARWIL."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from clickhouse_connect.driver.client import Client

from millrace.cli_options import ConfigOption, JsonOption, SetOption, print_json
from millrace.connections import log_address
from millrace.settings import load_settings
from schemas.errors import InputError

if TYPE_CHECKING:
    from trainer.episode_export import RecordedRun


def export_episodes(
    run: Annotated[str, typer.Argument(help="A run's id, the unique start of one, or: latest.")] = "latest",
    out: Annotated[Path, typer.Option("--out", help="Folder to write; new or empty.")] = Path("episodes"),
    policy: Annotated[str, typer.Option("--policy", help="Whose episodes: agent.")] = "agent",
    from_iteration: Annotated[
        int, typer.Option("--from-iteration", min=0, help="The first iteration whose episodes count.")
    ] = 0,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a run's training episodes as offline data: each is run again from its record, and must come out equal."""
    from analytics.names import query
    from analytics.runs import find_run
    from eventlog.open_log import open_log
    from millrace.store_session import store_session
    from trainer.episode_export import RecordedEpisode
    from trainer.episode_export import export_episodes as export

    settings = load_settings(config, set_ or ())
    with store_session(settings) as client, open_log(log_address(settings)) as log:
        run_id = find_run(client, run)
        recorded = _recorded_run(client, run_id)
        wanted = {"run_id": run_id, "policy": policy, "from_iteration": str(from_iteration)}
        rows = query(client, "recorded_episodes", wanted).dicts()
        manifest = export(recorded, (RecordedEpisode(**row) for row in rows), log, out)
    if as_json:
        print_json({"folder": str(out), **manifest.model_dump(include={"run_id", "episodes", "steps"})})
    else:
        typer.echo(f"{manifest.episodes:,} episodes, {manifest.steps:,} steps of run {run_id} in {out}")
        typer.echo(
            "next: millrace train --config examples/configs/bc.toml --set algorithm.offline_data.input_=" + str(out)
        )


def _recorded_run(client: Client, run_id: str) -> RecordedRun:
    from analytics.names import query
    from env.settings import EnvSettings
    from schemas.payloads import WindowOpened
    from trainer.episode_export import RecordedRun
    from trainer.settings import DataSettings

    rows = query(client, "recorded_run", {"run_id": run_id}).dicts()
    if not rows:
        raise InputError(f"run {run_id}: expected a training window on record, got none; it did not train on bars")
    parameters = json.loads(rows[0]["parameters"])
    if not {"data", "env"} <= parameters.keys():
        raise InputError(
            f"run {run_id}: expected its settings on record ([data] and [env]), got {sorted(parameters) or 'none'}; "
            "runs of `millrace train` and `millrace demo` have them"
        )
    windows = [WindowOpened(**{name: value for name, value in row.items() if name != "parameters"}) for row in rows]
    data = DataSettings.model_validate(parameters["data"])
    return RecordedRun(run_id, data, EnvSettings.from_mapping(parameters["env"]), windows)


def add_to(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(epilog="Example: millrace export-episodes latest --out episodes --from-iteration 6")(export_episodes)
