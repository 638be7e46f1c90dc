-- The integrity check as SQL: what publishers say they sent against what the store holds.

-- One row a publisher and event type.
--   emitted        highest number that the publisher gave, by its latest report: what ought to be here.
--   acknowledged   numbers that the log took, by the same report: emitted > acknowledged means still in the outbox.
--                  The closing report counts itself: who reads it has it from the log.
--   stored         numbers that the ledger holds with all their parts, repeats counted: stored > distinct_stored means
--                  that a reader sees a record twice.
--   distinct_stored  the same, each once: fewer than emitted means lost, or not here yet.
--   declared_rows  rows that those records say they carry.
--   stored_rows    rows of this publisher in the table of that type, read as people read it. More than declared: rows
--                  twice. Fewer: rows lost, or two records that claim the same rows.
CREATE VIEW IF NOT EXISTS run_integrity AS
SELECT
    run_id, publisher_id, event_type,
    sum(emitted_) AS emitted,
    sum(acknowledged_) AS acknowledged,
    sum(stored_) AS stored,
    sum(distinct_) AS distinct_stored,
    sum(declared_rows_) AS declared_rows,
    sum(stored_rows_) AS stored_rows,
    emitted = acknowledged AND emitted = stored AND emitted = distinct_stored AND declared_rows = stored_rows AS ok
FROM
(
    SELECT
        run_id, publisher_id, entry.1 AS event_type, entry.2 AS emitted_,
        acknowledged_until[event_type] AS acknowledged_,
        0 AS stored_, 0 AS distinct_, 0 AS declared_rows_, 0 AS stored_rows_
    FROM
    (
        SELECT run_id, publisher_id, argMax(emitted, number) AS emitted_until,
               argMax(acknowledged, number) AS acknowledged_until
        FROM publisher_reports GROUP BY run_id, publisher_id
    )
    ARRAY JOIN CAST(emitted_until, 'Array(Tuple(String, Int64))') AS entry

    UNION ALL
    SELECT run_id, publisher_id, event_type, 0, 0, toInt64(sumIf(copies, whole)), toInt64(countIf(whole)), sum(rows_), 0
    FROM
    (
        SELECT
            run_id, publisher_id, event_type, number,
            count() = max(parts_) AS whole, max(copies_of_part) AS copies, sum(rows_of_part) AS rows_
        FROM
        (
            SELECT run_id, publisher_id, event_type, number, part,
                   any(parts) AS parts_, count() AS copies_of_part, any(rows) AS rows_of_part
            FROM events GROUP BY run_id, publisher_id, event_type, number, part
        )
        GROUP BY run_id, publisher_id, event_type, number
    )
    GROUP BY run_id, publisher_id, event_type

    UNION ALL
    SELECT run_id, publisher_id, event_type, 0, 0, 0, 0, 0, toInt64(stored_rows_)
    FROM
    (
        SELECT run_id, publisher_id, 'run.started' AS event_type, count() AS stored_rows_
        FROM (SELECT run_id, publisher_id FROM runs_started_rows FINAL) GROUP BY run_id, publisher_id
        UNION ALL
        SELECT run_id, publisher_id, 'run.ended', count()
        FROM (SELECT run_id, publisher_id FROM runs_ended_rows FINAL) GROUP BY run_id, publisher_id
        UNION ALL
        SELECT run_id, publisher_id, 'attempt.started', count() FROM attempts GROUP BY run_id, publisher_id
        UNION ALL
        SELECT run_id, publisher_id, 'window.opened', count() FROM windows GROUP BY run_id, publisher_id
        UNION ALL
        SELECT run_id, publisher_id, 'iteration.ended', count() FROM iterations GROUP BY run_id, publisher_id
        UNION ALL
        SELECT run_id, publisher_id, 'publisher.report', count() FROM publisher_reports GROUP BY run_id, publisher_id
        UNION ALL
        SELECT run_id, publisher_id, 'episode.started', count()
        FROM (SELECT run_id, publisher_id FROM episodes_started_rows FINAL) GROUP BY run_id, publisher_id
        UNION ALL
        SELECT run_id, publisher_id, 'episode.ended', countIf(status = 'completed')
        FROM episodes GROUP BY run_id, publisher_id
        UNION ALL
        SELECT run_id, publisher_id, 'episode.actions', toUInt64(sum(steps))
        FROM episode_actions GROUP BY run_id, publisher_id
        UNION ALL
        SELECT run_id, publisher_id, 'trades', count() FROM trades GROUP BY run_id, publisher_id
        UNION ALL
        SELECT run_id, publisher_id, 'fills', count() FROM fills GROUP BY run_id, publisher_id
        UNION ALL
        SELECT run_id, publisher_id, 'steps', count() FROM steps GROUP BY run_id, publisher_id
        UNION ALL
        SELECT run_id, publisher_id, 'positions', count() FROM positions GROUP BY run_id, publisher_id
    )
    WHERE stored_rows_ > 0
)
GROUP BY run_id, publisher_id, event_type
COMMENT 'Per publisher and event type. emitted: highest number given, by its latest report (what ought to be here). acknowledged: numbers the log took. stored: numbers in the ledger with all parts, repeats counted. distinct_stored: the same, each once. declared_rows: rows these records carry. stored_rows: rows in the table of that type as queries see it. ok: the first four are equal, and so are the last two.';

-- One row a run: the verdict. A run holds when every line above does, every publisher has closed, and no dead letter
-- waits. Abandoned episodes are shown and are no fault: nothing that was published of them is missing.
CREATE VIEW IF NOT EXISTS run_integrity_totals AS
SELECT
    run_id,
    sum(lines_) AS lines,
    sum(lines_ok_) AS lines_ok,
    sum(publishers_) AS publishers,
    arraySort(groupArrayArray(open_)) AS open_publishers,
    sum(dead_letters_) AS dead_letters,
    sum(resolved_) AS dead_letters_resolved,
    sum(abandoned_) AS abandoned_episodes,
    sum(running_) AS running_episodes,
    lines > 0 AND lines = lines_ok AND publishers > 0 AND empty(open_publishers)
        AND dead_letters = dead_letters_resolved AS ok
FROM
(
    SELECT run_id, count() AS lines_, countIf(ok) AS lines_ok_, 0 AS publishers_, CAST([], 'Array(String)') AS open_,
           0 AS dead_letters_, 0 AS resolved_, 0 AS abandoned_, 0 AS running_
    FROM run_integrity GROUP BY run_id
    UNION ALL
    SELECT run_id, 0, 0, count(), groupArrayIf(CAST(publisher_id, 'String'), NOT closed), 0, 0, 0, 0
    FROM publishers GROUP BY run_id
    UNION ALL
    SELECT run_id, 0, 0, 0, [], count(), countIf(resolved), 0, 0
    FROM dead_letters WHERE run_id != '' GROUP BY run_id
    UNION ALL
    SELECT run_id, 0, 0, 0, [], 0, 0, countIf(status = 'abandoned'), countIf(status = 'running')
    FROM episodes GROUP BY run_id
)
GROUP BY run_id
COMMENT 'Per run. ok: every line of run_integrity holds, every publisher has sent its closing report, and no dead letter waits. Abandoned episodes are shown and are no fault.';
