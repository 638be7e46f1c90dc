"""Finding a run by what people type."""

from __future__ import annotations

from clickhouse_connect.driver.client import Client

from analytics.names import ask
from schemas.errors import InputError

LATEST = "latest"


def find_run(client: Client, text: str) -> str:
    """The id of a run.

    Args:
        client: of the store.
        text: the whole id, the unique start of one, or ``latest``.

    Raises:
        InputError: no run, or several, are meant.
        StoreError: the store refused or did not answer.
    """
    if text == LATEST:
        found = ask(client, "SELECT run_id FROM runs ORDER BY started_at DESC LIMIT 1").rows
        if not found:
            raise InputError("run 'latest': expected a run in the store, there is none yet; run `millrace demo`")
        return str(found[0][0])
    sql = "SELECT run_id FROM runs WHERE startsWith(run_id, {text:String}) ORDER BY run_id LIMIT 5"
    ids = [str(row[0]) for row in ask(client, sql, {"text": text}).rows]
    if len(ids) == 1:
        return ids[0]
    if ids:
        raise InputError(f"run {text!r}: expected the start of one id, got that of several: {', '.join(ids)}")
    raise InputError(
        f"run {text!r}: expected a run that the store knows, found none; list them with "  # noqa: S608 - to paste
        '`millrace query "SELECT run_id, name, started_at FROM runs ORDER BY started_at"`'
    )
