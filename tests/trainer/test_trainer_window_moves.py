"""A window moves while a run trains: the runners trade the new one, and every episode stays on its own."""

from __future__ import annotations

from typing import Any

import pytest

from env.scaler import Scaler
from trainer.algorithm import build_config
from trainer.callbacks import finish_run
from trainer.fast_path import FastPath, use_fast_path
from trainer.settings import DataSettings, EnvConfig
from trainer.window_moves import move_window
from trainer.window_store import WindowStore
from trainer.windows import open_window, read_history

DAY = 86_400_000_000


def open_run(bench: Any, name: str, runners: int, fast: bool) -> tuple[Any, WindowStore, list[Any]]:
    """An algorithm on the first of three training windows, each of which ends later than the one before."""
    bench.send_walks("AAA", "BBB")
    job = bench.job(name, runners=runners)
    with bench.open_log() as log:
        history = read_history(log, DataSettings(feed="walk"))
    scaler = Scaler.fit(open_window(history, "train", 150 * DAY, job.env).data)
    windows = [open_window(history, "train", cut * DAY, job.env, scaler.version) for cut in (150, 200, 250)]
    store = WindowStore(bench.run_id)
    store.put(windows[0])
    store.put(open_window(history, "test", 250 * DAY, job.env, scaler.version))
    common = {"window_store": store.name, "scaler": scaler.to_dict(), "seed": 7, "num_envs": 2}
    settings = job.env.model_dump(mode="json")
    train = EnvConfig(split="train", settings=settings, **common)
    test = EnvConfig(split="test", settings=settings, branch="evaluation", **common)
    events = bench.settings(windows=(windows[0].opened,), window_store=store.name)
    config = build_config(job.algorithm, train, test, events, 1)
    if fast:
        path = use_fast_path(config)
        assert path == FastPath(None, None, path.no_kernels)
    return config.build_algo(), store, windows


@pytest.mark.parametrize(
    ("name", "runners", "fast"),
    [
        ("DQN", 0, True),
        pytest.param("PPO", 2, True, marks=pytest.mark.slow),
        pytest.param("PPO", 0, False, marks=pytest.mark.slow),
    ],
)
def test_runners_follow_a_window_that_moves(bench: Any, ray_session: None, name: str, runners: int, fast: bool) -> None:
    algorithm, store, windows = open_run(bench, name, runners, fast)
    try:
        for number, window in enumerate(windows):
            if number:
                move_window(algorithm, store, window)
            for _ in range(2):
                algorithm.train()
        finish_run(algorithm)
    finally:
        algorithm.stop()
        store.close()
    run = bench.run()
    ids = [window.opened.window_id for window in windows]
    assert [opened.window_id for opened in run.of("window.opened")] == ids
    started = {one.episode_id: one.window_id for one in run.of("episode.started")}
    for episode in run.agent():
        assert started[episode.episode_id] == episode.window_id
        assert episode.last_ts <= windows[ids.index(episode.window_id)].opened.last_ts
        assert ids.index(episode.window_id) == (episode.iteration - 1) // 2
    assert {episode.window_id for episode in run.agent()} == set(ids)
    # What is in progress at a move has no end, nor has what is so when the run ends.
    assert len(started) - len(run.agent()) <= 3 * 2 * max(runners, 1)
