"""kill -9, in the middle of a demo, of each process in turn.

That the oracle finds a consumer which commits before it stores is shown in tests/consumers, with a planted bug.
"""

from __future__ import annotations

import random
import signal
import time
from typing import Any

import pytest
from system_faults import differences, kill

from analytics.integrity import check_run
from analytics.names import ask

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("seed", "victims"),
    [(1, ["consumer", "env runner", "store"]), (2, ["consumer", "forwarder", "env runner", "store", "forwarder"])],
)
def test_a_demo_whose_processes_are_killed_ends_with_a_clean_table(
    run_demo: Any, seed: int, victims: list[str]
) -> None:
    rng = random.Random(seed)
    marks = sorted(rng.sample(range(1, 11), len(victims)))
    demo = run_demo("train.iterations=12")
    for mark, victim in zip(marks, victims, strict=True):
        demo.wait_for(rf"iteration {mark}/")
        time.sleep(rng.uniform(0, 0.5))
        kill(demo, victim, rng)
    assert demo.finish() == 0, demo.output
    assert "The integrity table holds" in demo.output
    assert "Traceback" not in demo.output
    for name in {"consumer", "store"} & set(victims):
        assert f"the {name} had died and is up again" in demo.output
    assert demo.left_running() == []
    with demo.stack() as stack:
        assert differences(stack, demo.run_id) == []
        with stack.client() as client:
            restarted = "SELECT count() FROM publishers WHERE role = 'r' AND restart > 0"
            assert ask(client, restarted).rows == [(1,)], "the killed runner came back as another life of its publisher"


def test_a_driver_killed_in_mid_training_loses_nothing(run_demo: Any) -> None:
    demo = run_demo("train.iterations=1000", "env.episode_length=700")
    demo.wait_for(r"iteration 3/")
    demo.process.kill()
    assert demo.finish() == -signal.SIGKILL
    assert demo.left_running() == []
    with demo.stack() as stack:
        assert stack.drain(40), stack.state()
        assert differences(stack, demo.run_id) == []
        with stack.client() as client:
            assert ask(client, "SELECT status FROM runs").rows == [("interrupted",)]
            closed_by = ask(client, "SELECT DISTINCT closed_by FROM publisher_reports WHERE closing").rows
            assert closed_by == [("forwarder",)]
            table = check_run(client, demo.run_id)
            assert not table.open_publishers
            assert table.abandoned_episodes > 0
            assert table.running_episodes == 0


def test_the_same_seed_gives_the_same_episodes(run_demo: Any) -> None:
    returns = []
    for _ in range(2):
        demo = run_demo("train.iterations=3", "train.seed=7")
        assert demo.finish() == 0, demo.output
        with demo.stack() as stack, stack.client() as client:
            sql = (
                "SELECT role, worker_index, env_index, episode_no, policy, symbol, start_row, total_reward "
                f"FROM episodes WHERE run_id = '{demo.run_id}' AND status = 'completed' ORDER BY 1, 2, 3, 4, 5, 6"
            )
            returns.append(ask(client, sql).rows)
    first, second = ({row[:-1]: row[-1] for row in rows} for rows in returns)
    assert len(first) > 20
    assert {row[1] for row in first if row[0] == "r"} == {1, 2}
    assert first == second
