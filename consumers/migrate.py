"""Bring the store's tables and views up to the steps in ``consumers/migrations``.

A step is a file ``NNNN_name.sql``. It is applied once, in order, and noted in ``schema_migrations`` with its SHA-256; a
step that was applied is never edited again. ClickHouse has no transactions over DDL and no lock to take, so each
statement of a step must be safe to run twice (IF NOT EXISTS, OR REPLACE): then a migration that was killed half way,
or two that start at once, end in the same store.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources

from clickhouse_connect.driver.client import Client

from consumers.store_errors import named_errors
from schemas.errors import StoreError

_TOKEN = re.compile(
    r"""
      (?P<comment> --[^\n]* | \#![^\n]* | /\*.*?\*/ )
    | (?P<quoted> '(?:\\.|''|[^'\\])*' | `(?:\\.|``|[^`\\])*` | "(?:\\.|""|[^"\\])*" )
    | (?P<end> ; )
    | (?P<text> [^-#/'`";]+ | . )
    """,
    re.VERBOSE | re.DOTALL,
)

_APPLIED_TABLE = """
CREATE TABLE IF NOT EXISTS schema_migrations
(
    number Int64,
    name String,
    sha256 String,
    applied_at DateTime64(6, 'UTC') DEFAULT now64(6)
)
ENGINE = ReplacingMergeTree ORDER BY number
"""


@dataclass(frozen=True, slots=True)
class Step:
    """One file of ``consumers/migrations``."""

    number: int
    name: str
    sql: str

    @property
    def sha256(self) -> str:
        """Of the file's text."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def steps() -> list[Step]:
    """The steps that this version knows, in order.

    Raises:
        StoreError: the numbers are not 1, 2, 3, ….
    """
    found = []
    for file in resources.files("consumers.migrations").iterdir():
        named = re.fullmatch(r"(\d{4})_(\w+)\.sql", file.name)
        if named is not None:
            found.append(Step(int(named[1]), named[2], file.read_text(encoding="utf-8")))
    found.sort(key=lambda step: step.number)
    numbers = [step.number for step in found]
    if numbers != list(range(1, len(found) + 1)):
        raise StoreError(f"consumers/migrations: expected steps numbered 0001, 0002, … without gaps, got {numbers}")
    return found


def statements(sql: str) -> Iterator[str]:
    """The statements of a script: split at semicolons outside quotes and comments; comments are left out."""
    words: list[str] = []
    for token in _TOKEN.finditer(sql):
        if token.lastgroup == "end":
            if statement := "".join(words).strip():
                yield statement
            words = []
        else:
            words.append(" " if token.lastgroup == "comment" else token[0])
    if statement := "".join(words).strip():
        yield statement


def migrate(client: Client, database: str, known: Sequence[Step] | None = None) -> list[str]:
    """Create the database where it is missing, and apply the steps that it lacks. Safe to call at any time.

    Args:
        client: a connection that may create tables; its own default database does not matter.
        database: the database to bring up to date.
        known: the steps; those of ``consumers/migrations`` unless given.

    Returns:
        Names of the steps that this call applied, such as ``0001_rows``.

    Raises:
        StoreError: a step was changed after it was applied, the store has a step that this version does not know, or a
            statement failed.
        StoreUnavailableError: the store does not answer.
    """
    wanted = steps() if known is None else list(known)
    if re.fullmatch(r"\w+", database) is None:
        raise StoreError(f"database {database!r}: expected a name of letters, digits and _")
    within = {"database": database}
    with named_errors(client, "create the tables"):
        client.command(f"CREATE DATABASE IF NOT EXISTS {database}")
        client.command(_APPLIED_TABLE, settings=within)
    applied = _applied(client, database)
    _check(applied, wanted, database)
    done = []
    for step in wanted:
        if step.number in applied:
            continue
        label = f"{step.number:04d}_{step.name}"
        with named_errors(client, f"apply migration {label}"):
            for statement in statements(step.sql):
                client.command(statement, settings=within)
            client.insert(
                "schema_migrations",
                [[step.number, step.name, step.sha256]],
                column_names=["number", "name", "sha256"],
                database=database,
            )
        done.append(label)
    return done


def _applied(client: Client, database: str) -> dict[int, tuple[str, str]]:
    with named_errors(client, "read schema_migrations"):
        rows = client.query(f"SELECT number, name, sha256 FROM {database}.schema_migrations FINAL").result_rows  # noqa: S608
    return {int(number): (str(name), str(sha256)) for number, name, sha256 in rows}


def _check(applied: dict[int, tuple[str, str]], wanted: Sequence[Step], database: str) -> None:
    known = {step.number: step for step in wanted}
    for number, (name, sha256) in sorted(applied.items()):
        step = known.get(number)
        if step is None:
            raise StoreError(
                f"database {database}: it has migration {number:04d}_{name}, and this version knows {len(wanted)} "
                "steps only; a newer Millrace made it: use that version, or another database"
            )
        if step.sha256 != sha256:
            raise StoreError(
                f"database {database}: migration {number:04d}_{name} was applied with SHA-256 {sha256[:12]}…, and the "
                f"file now has {step.sha256[:12]}…; a step that was applied must not change: add a new step instead"
            )
