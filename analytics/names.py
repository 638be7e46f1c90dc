"""Named queries: ``query(client, "test_results", {"run_id": run})``.

They are the files of ``analytics/queries``. What they read are views of the same names (consumers/migrations), which
people can query and join as they like.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

from clickhouse_connect.driver.client import Client

from analytics.connect import reading
from schemas.errors import InputError


@dataclass(frozen=True, slots=True)
class NamedQuery:
    """One file of ``analytics/queries``.

    Attributes:
        name: the file's name without ``.sql``.
        answers: what it answers, from its first comment.
        sql: its text; parameters stand as ``{name:Type}``.
        parameters: names of the parameters that it needs.
    """

    name: str
    answers: str
    sql: str
    parameters: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows of a query, with the names of its columns. Times are datetimes in UTC."""

    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]

    def dicts(self) -> list[dict[str, Any]]:
        """Each row as column to value."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


def queries() -> dict[str, NamedQuery]:
    """Name to query, sorted by name."""
    found = {}
    for file in sorted(resources.files("analytics.queries").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".sql"):
            sql = file.read_text(encoding="utf-8")
            name = file.name.removesuffix(".sql")
            answers = sql.splitlines()[0].removeprefix("--").strip()
            found[name] = NamedQuery(name, answers, sql, tuple(dict.fromkeys(re.findall(r"\{(\w+):", sql))))
    return found


def query(client: Client, name: str, parameters: Mapping[str, str] | None = None) -> Answer:
    """The answer of a named query.

    Args:
        client: from :func:`analytics.connect.connect`.
        name: one of :func:`queries`.
        parameters: values for the query's parameters, such as ``{"run_id": …}``.

    Raises:
        InputError: no such query, or a parameter is missing or unknown.
        StoreError: the store refused or did not answer.
    """
    known = queries()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"query {name!r}: expected one of {', '.join(known)}{hint}")
    given, wanted = dict(parameters or {}), known[name].parameters
    if set(given) != set(wanted):
        raise InputError(
            f"query {name!r}: expected the parameters {', '.join(wanted) or 'none'}, got {', '.join(given) or 'none'}"
        )
    return ask(client, known[name].sql, given)


def ask(client: Client, sql: str, parameters: Mapping[str, str] | None = None) -> Answer:
    """The answer of any SELECT, with parameters as ``{name:Type}``.

    Raises:
        StoreError: the store refused or did not answer.
    """
    with reading(client):
        result = client.query(sql, parameters=dict(parameters or {}), tz_mode="aware")
        return Answer(tuple(result.column_names), [tuple(row) for row in result.result_rows])
