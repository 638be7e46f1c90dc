"""The validation split: between training and test, traded while it trains; the test is traded once, at the end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from env.settings import EnvSettings
from eventlog.open_log import open_log
from schemas.errors import SettingsError, WindowError
from trainer.algorithm_checks import check_algorithm
from trainer.settings import AlgorithmSettings, DataSettings
from trainer.windows import History, cuts, open_windows, read_history, warm_up

DATA = DataSettings(feed="walk", validation_fraction=0.1)
ENV = EnvSettings(window=4, episode_length=40)


def history_of(bench: Any) -> History:
    with open_log(bench.address) as log:
        return read_history(log, DATA)


@pytest.mark.parametrize("portfolio", [False, True])
def test_no_bar_is_traded_in_two_splits_and_none_between_them_is_left_out(portfolio: bool, bench: Any) -> None:
    bench.send_walks("AAA", "BBB")
    env = ENV.model_copy(update={"portfolio": portfolio})
    history = history_of(bench)
    begin = cuts(history, DATA)
    windows = open_windows(history, begin, env)
    assert list(windows) == ["train", "validation", "test"]
    before = warm_up(env, history.bars[0].interval)
    times = history.bars[0].ts_close
    traded = []
    for split, window in windows.items():
        first, last = (int(np.searchsorted(times, ts)) for ts in (window.opened.first_ts, window.opened.last_ts))
        traded.append((first if split == "train" else first + before, last))
        assert window.opened.split == split
    (_, train_end), (validation, validation_end), (test, test_end) = traded
    assert (validation, test) == (train_end + 1, validation_end + 1)
    assert test_end == len(times) - 1
    assert validation_end - validation + 1 == pytest.approx(0.1 * len(times), abs=1)


def test_without_a_share_there_is_no_such_split_and_the_others_are_as_ever(bench: Any) -> None:
    bench.send_walks("AAA")
    history = history_of(bench)
    begin = cuts(history, DataSettings(feed="walk"))
    assert begin.validation is None
    windows = open_windows(history, begin, ENV)
    assert list(windows) == ["train", "test"]
    with_share = open_windows(history, cuts(history, DATA), ENV)
    assert windows["test"].opened.window_id == with_share["test"].opened.window_id


def test_a_share_that_leaves_nothing_to_train_on_is_refused(bench: Any) -> None:
    bench.send_walks("AAA")
    with pytest.raises(WindowError, match=r"data.validation_fraction 0.9: expected bars before the validation"):
        cuts(history_of(bench), DATA.model_copy(update={"validation_fraction": 0.9}))


def test_evaluating_in_training_needs_bars_that_are_not_the_tests() -> None:
    algorithm = AlgorithmSettings(name="PPO", evaluation={"evaluation_interval": 5})  # type: ignore[call-arg]
    with pytest.raises(SettingsError, match=r"evaluation_interval 5: expected data.validation_fraction above 0, got 0"):
        check_algorithm(algorithm, EnvSettings(), DataSettings())
    check_algorithm(algorithm, EnvSettings(), DATA)


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [False, True])
def test_the_validation_is_traded_in_training_and_the_test_at_the_end(
    parallel: bool, bench: Any, ray_session: None
) -> None:
    bench.send_walks("AAA", "BBB")
    evaluation = {
        "evaluation_interval": 1,
        "evaluation_num_env_runners": int(parallel),
        "evaluation_parallel_to_training": parallel,
    }
    job = bench.job("PPO", tables={"evaluation": evaluation}, train={"iterations": 3})
    run = bench.train(type(job)(**{**vars(job), "data": DATA}))
    assert run.result is not None
    assert run.result.status == "completed"
    # One update an iteration: that of iteration k makes policy version k. Beside the first one it is the fresh one.
    shown = sorted((each.symbol, each.iteration, each.last_policy_version) for each in run.agent("validation"))
    wanted = [(1, 0), (1, 1), (2, 2)] if parallel else [(1, 1), (2, 2), (3, 3)]
    assert shown == sorted((symbol, *pair) for symbol in ("AAA", "BBB") for pair in wanted)
    tested = sorted((each.symbol, each.iteration, each.last_policy_version) for each in run.agent("test"))
    assert tested == [("AAA", 3, 3), ("BBB", 3, 3)]
    assert {each.data_hash for each in run.agent("validation")}.isdisjoint(
        each.data_hash for each in run.agent("test") + run.agent("train")
    )
    assert {event.split for event in run.of("window.opened")} == {"train", "validation", "test"}

    again = bench.train(
        type(job)(**{**vars(job), "train": job.train.model_copy(update={"iterations": 4}), "data": DATA,
                     "resume_from": run.result.checkpoint})
    )  # fmt: skip
    assert {event.window_id for event in again.of("window.opened")} == {
        event.window_id for event in run.of("window.opened")
    }
    assert {each.iteration for each in again.agent("test")} == {3, 4}
