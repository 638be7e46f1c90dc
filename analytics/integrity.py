"""The integrity check: does the store hold exactly what a run's publishers say they sent?

The counting is SQL (the views ``run_integrity`` and ``run_integrity_totals``, consumers/migrations/0003_integrity.sql,
where each column says what it proves), so that who queries the store sees the same table. Here it is read, and what
does not agree is said in words.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from clickhouse_connect.driver.client import Client

from analytics.names import ask, query
from schemas.errors import InputError, IntegrityError


@dataclass(frozen=True, slots=True)
class IntegrityLine:
    """One publisher and event type.

    Attributes:
        publisher: one life of one process.
        event_type: such as ``trades``.
        emitted: highest number that the publisher gave, by its latest report.
        acknowledged: numbers that the log took, by the same report.
        stored: numbers that the ledger holds with all their parts, repeats counted.
        distinct: the same, each once.
        declared_rows: rows that those records say they carry.
        stored_rows: rows of this publisher in the table of that type, as queries see it.
        ok: emitted, acknowledged, stored and distinct are equal, and so are the two counts of rows.
    """

    publisher: str
    event_type: str
    emitted: int
    acknowledged: int
    stored: int
    distinct: int
    declared_rows: int
    stored_rows: int
    ok: bool

    def problems(self) -> list[str]:
        """What does not agree, and what that means; empty where all does."""
        found = []
        if self.acknowledged != self.emitted:
            found.append(f"emitted {self.emitted}, acknowledged by the log {self.acknowledged}: still in its outbox?")
        if self.distinct < self.emitted:
            found.append(f"emitted {self.emitted}, stored {self.distinct}: {self.emitted - self.distinct} missing")
        if self.distinct > self.emitted:
            found.append(
                f"stored {self.distinct}, but its latest report says {self.emitted}: the report is old or missing"
            )
        if self.stored != self.distinct:
            found.append(f"{self.stored} records visible, {self.distinct} of them distinct: some are there twice")
        if self.stored_rows < self.declared_rows:
            found.append(f"{self.declared_rows} rows declared, {self.stored_rows} stored: rows missing")
        if self.stored_rows > self.declared_rows:
            found.append(f"{self.declared_rows} rows declared, {self.stored_rows} stored: rows too many")
        return [f"publisher {self.publisher}, {self.event_type}: {problem}" for problem in found]


@dataclass(frozen=True, slots=True)
class IntegrityTable:
    """The check of one run.

    Attributes:
        run_id: the run.
        lines: one per publisher and event type.
        publishers: how many publishers are known of.
        open_publishers: ids of those without a closing report; their outbox may hold more.
        dead_letters: records of the run that could not be read …
        dead_letters_resolved: … and those of them whose event has been stored since.
        unattributed_dead_letters: dead letters in the store that name no run at all.
        abandoned_episodes: episodes that began and can no longer end; no fault.
        running_episodes: episodes that began and may still end.
        problems: every difference in words; empty where the check holds.
        ok: the check holds.
    """

    run_id: str
    lines: list[IntegrityLine]
    publishers: int
    open_publishers: list[str]
    dead_letters: int
    dead_letters_resolved: int
    unattributed_dead_letters: int
    abandoned_episodes: int
    running_episodes: int
    problems: list[str] = field(default_factory=list)
    ok: bool = False

    def require(self) -> None:
        """Pass where the check holds.

        Raises:
            IntegrityError: it does not; the message names the first differences.
        """
        if not self.ok:
            more = f" (and {len(self.problems) - 3} more)" if len(self.problems) > 3 else ""
            raise IntegrityError(f"run {self.run_id}: {'; '.join(self.problems[:3])}{more}")


def check_run(client: Client, run_id: str) -> IntegrityTable:
    """Compare what the run's publishers say they sent with what the store holds, now.

    Raises:
        InputError: the store knows nothing of such a run.
        StoreError: the store refused or did not answer.
    """
    totals = query(client, "run_integrity_totals", {"run_id": run_id}).dicts()
    if not totals:
        raise InputError(
            f"run {run_id!r}: expected a run that the store knows, found nothing of it; the query 'runs' lists them"
        )
    total = totals[0]
    lines = [
        IntegrityLine(
            str(row["publisher_id"]),
            str(row["event_type"]),
            int(row["emitted"]),
            int(row["acknowledged"]),
            int(row["stored"]),
            int(row["distinct_stored"]),
            int(row["declared_rows"]),
            int(row["stored_rows"]),
            bool(row["ok"]),
        )
        for row in query(client, "run_integrity", {"run_id": run_id}).dicts()
    ]
    unattributed = int(ask(client, "SELECT count() FROM dead_letters WHERE run_id = '' AND NOT resolved").rows[0][0])
    open_publishers = [str(publisher) for publisher in total["open_publishers"]]
    dead, resolved = int(total["dead_letters"]), int(total["dead_letters_resolved"])
    problems = [problem for line in lines for problem in line.problems()]
    problems += [
        f"publisher {publisher}: no closing report; its process runs, or its outbox waits to be sent"
        for publisher in open_publishers
    ]
    if dead > resolved:
        problems.append(f"{dead - resolved} records of the run are dead letters; the view dead_letters says why")
    if not lines or not int(total["publishers"]):
        problems.append("no publisher of the run has stored anything")
    return IntegrityTable(
        run_id=run_id,
        lines=lines,
        publishers=int(total["publishers"]),
        open_publishers=open_publishers,
        dead_letters=dead,
        dead_letters_resolved=resolved,
        unattributed_dead_letters=unattributed,
        abandoned_episodes=int(total["abandoned_episodes"]),
        running_episodes=int(total["running_episodes"]),
        problems=problems,
        ok=bool(total["ok"]) and not problems,
    )
