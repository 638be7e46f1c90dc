"""A run on two Ray nodes, one of which dies: its runners come back on a third, and not a record is lost."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any

import pytest
from ray.cluster_utils import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that holds one of our runners; other nodes are the test's."""
    for name, value in {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}.items():
        monkeypatch.setenv(name, value)
    # A node notices the death of another by its heartbeats; Ray waits long for them.
    monkeypatch.setenv("RAY_health_check_period_ms", "1000")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "3")
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False},
    )
    yield made
    made.shutdown()


def test_the_runners_of_a_dead_node_come_back_and_nothing_is_lost(cluster: Any, run_demo: Any) -> None:
    second = cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    demo = run_demo(
        f"ray.address={cluster.address}",
        "algorithm.name=PPO",
        "algorithm.training.train_batch_size_per_learner=512",
        "algorithm.training.minibatch_size=128",
        "train.iterations=40",
        "train.seed=3",
    )
    demo.wait_for(r"iteration 2/40: ", 300)
    cluster.remove_node(second, allow_graceful=False)
    demo.wait_for(r"iteration 4/40: ", 300)
    cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
    assert demo.finish(400) == 0, demo.output
    # A runner of the dead node has a second life, under the next restart number.
    lives = set(re.findall(r"1\.r(\d)\.(\d)\.", demo.output))
    assert {worker for worker, _ in lives} == {"1", "2"}
    assert "1" in {restart for _, restart in lives}, demo.output
    assert "The integrity table holds: all that was published is stored, once." in demo.output
    assert re.search(r"began and did not end: \d+ abandoned, 0 running", demo.output)
    assert "Traceback" not in demo.output
    # It was the cluster's Ray, and it still runs.
    assert os.environ.get("RAY_ADDRESS") is None
    assert len(cluster.list_all_nodes()) == 2
