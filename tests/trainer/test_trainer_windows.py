"""Windows: what identifies them, how they are cut, and what happens when the log no longer holds their bars."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from bar_makers import without

from env.bars import SymbolBars
from env.market_data import MarketData
from env.scaler import Scaler
from env.settings import EnvSettings
from env.trading_env import TradingEnv
from eventlog.open_log import open_log
from eventlog.sqlite_log import SqliteLog
from schemas.errors import OffsetOutOfRangeError, WindowError
from schemas.topics import TOPICS
from trainer.checkpoints import CheckpointFacts, reopen_windows
from trainer.settings import DataSettings
from trainer.windows import History, Window, first_test_ts, open_window, read_history, reopen_history, warm_up

DATA = DataSettings(feed="walk")
WARM_UP = 5
ENV = EnvSettings(window=WARM_UP - 1)
DAY = 86_400_000_000


def history_of(bench: Any, data: DataSettings = DATA) -> History:
    with open_log(bench.address) as log:
        return read_history(log, data)


def windows_of(
    bench: Any, data: DataSettings = DATA, scaler: str = "", env: EnvSettings = ENV
) -> tuple[Window, Window]:
    history = history_of(bench, data)
    cut = first_test_ts(history, data)
    return open_window(history, "train", cut, env, scaler), open_window(history, "test", cut, env, scaler)


def test_identity_is_stable_over_what_else_is_appended(bench: Any, bars: Any, record: Any) -> None:
    bench.send_walks("AAA", "BBB")
    before = [window.opened for window in windows_of(bench)]
    bench.send(record(bars("AAA", 40), 0, 40, feed="other"), record(bars("AAA", 40), 0, 40, adjusted=False))
    assert [window.opened for window in windows_of(bench)] == before


def test_the_bars_hash_alike_on_another_log_and_in_other_chunks(new_bench: Any, bars: Any, record: Any) -> None:
    one, other = new_bench(), new_bench()
    walk = bars("AAA", 300)
    one.send(record(walk, 0, 300))
    other.send(*(record(walk, start, start + 30) for start in range(0, 300, 30)))
    for ours, theirs in zip(windows_of(one), windows_of(other), strict=True):
        assert ours.opened.data_hash == theirs.opened.data_hash
        assert ours.opened.window_id != theirs.opened.window_id


def test_different_bars_hash_differently(new_bench: Any, bars: Any, record: Any) -> None:
    one, other = new_bench(), new_bench()
    walk = bars("AAA", 300)
    one.send(record(walk, 0, 300))
    close = walk.close.copy()
    close[7] = np.nextafter(close[7], walk.low[7])
    other.send(record(replace(walk, close=close), 0, 300))
    assert windows_of(one)[0].opened.data_hash != windows_of(other)[0].opened.data_hash
    assert windows_of(one)[1].opened.data_hash == windows_of(other)[1].opened.data_hash


def test_an_equal_repeat_is_ignored(bench: Any, bars: Any, record: Any) -> None:
    walk = bars("AAA", 300)
    bench.send(record(walk, 0, 300))
    before = windows_of(bench)[0].opened
    bench.send(record(walk, 10, 20))
    history = history_of(bench)
    assert history.refused == {}
    assert len(history.bars[0]) == 300
    assert windows_of(bench)[0].opened.data_hash == before.data_hash


def test_a_repeat_with_other_values_is_refused_and_counted(bench: Any, bars: Any, record: Any) -> None:
    walk, revised = bars("AAA", 300), bars("AAA", 300, seed=2)
    bench.send(record(walk, 0, 300), record(revised, 10, 13))
    history = history_of(bench)
    assert history.refused == {"AAA": 3}
    np.testing.assert_array_equal(history.bars[0].close, walk.close)
    assert windows_of(bench)[0].opened.refused_bars == 3


def test_bars_come_in_order_of_time_however_they_were_published(bench: Any, bars: Any, record: Any) -> None:
    walk = bars("AAA", 300)
    bench.send(record(walk, 200, 300), record(walk, 0, 100), record(walk, 100, 200))
    np.testing.assert_array_equal(history_of(bench).bars[0].close, walk.close)


def test_the_cut_keeps_test_bars_out_of_the_train_window(bench: Any) -> None:
    bench.send_walks("AAA", "BBB")
    train, test = windows_of(bench)
    history = history_of(bench)
    cut = first_test_ts(history, DATA)
    assert train.data.ts_close.max() < cut
    assert train.opened.last_ts == cut - DAY
    # 20 % of the range, and the warm-up bars before it, which are only looked at.
    assert (test.data.ts_close >= cut).sum() == 2 * 60
    assert (test.data.ts_close < cut).sum() == 2 * WARM_UP
    assert train.opened.bars == 2 * 240
    assert [train.opened.split, test.opened.split] == ["train", "test"]


def test_funding_rates_come_along_and_are_part_of_the_data(new_bench: Any, bars: Any, record: Any) -> None:
    without, with_rates = new_bench(), new_bench()
    walk = bars("AAA", 300)
    without.send(record(walk, 0, 300))
    assert windows_of(without)[0].data.funding.tolist() == [0.0] * 240
    rates = [0.0001 if row % 8 == 0 else None for row in range(150)]
    with_rates.send(record(walk, 0, 150).model_copy(update={"funding_rate": rates}), record(walk, 150, 300))
    train = windows_of(with_rates)[0]
    assert train.data.funding.tolist() == [*(rate or 0.0 for rate in rates), *[0.0] * 90]
    assert train.opened.data_hash != windows_of(without)[0].opened.data_hash


def test_rows_of_the_test_window_are_absolute(bench: Any) -> None:
    bench.send_walks("AAA", "BBB")
    train, test = windows_of(bench)
    assert train.data.base_rows.tolist() == [0, 0]
    assert test.data.base_rows.tolist() == [240 - WARM_UP] * 2
    whole = history_of(bench).bars[0]
    assert test.data.open[0] == whole.open[240 - WARM_UP]


@pytest.mark.parametrize(("features", "bars"), [(("log_close",), WARM_UP), (("log_close", "zscore(20)"), 23)])
def test_the_first_bar_traded_in_the_test_is_the_first_after_the_cut(
    bench: Any, features: tuple[str, ...], bars: int
) -> None:
    bench.send_walks("AAA")
    settings = EnvSettings(window=WARM_UP - 1, starts="whole", features=features)
    assert warm_up(settings, DAY) == bars
    test = windows_of(bench, env=settings)[1]
    env = TradingEnv(test.data, settings)
    env.reset(seed=1)
    env.step(2)
    record = env.episode_record()
    assert record.steps_table["ts"][0] == first_test_ts(history_of(bench), DATA)
    assert record.fills["row"].tolist() == [240]


def test_a_symbol_with_history_on_one_side_only_is_in_that_window_only(bench: Any, bars: Any, record: Any) -> None:
    bench.send(
        record(bars("OLD", 200), 0, 200),
        record(bars("BOTH", 300), 0, 300),
        record(bars("NEW", 20, first=280), 0, 20),
    )
    train, test = windows_of(bench)
    assert train.opened.symbols == ["BOTH", "OLD"]
    assert test.opened.symbols == ["BOTH", "NEW"]


def test_the_scaler_sees_no_test_bar(new_bench: Any, bars: Any, record: Any) -> None:
    calm, wild = new_bench(), new_bench()
    walk = bars("AAA", 300)
    shocked = replace(walk, **{name: getattr(walk, name).copy() for name in ("open", "high", "low", "close")})
    for name in ("open", "high", "low", "close"):
        getattr(shocked, name)[240:] *= np.linspace(1, 50, 60)
    calm.send(record(walk, 0, 300))
    wild.send(record(shocked, 0, 300))
    versions = {Scaler.fit(windows_of(bench)[0].data).version for bench in (calm, wild)}
    assert len(versions) == 1
    assert Scaler.fit(windows_of(wild)[1].data).version not in versions


def test_test_from_names_the_first_test_bar(bench: Any) -> None:
    bench.send_walks("AAA")
    data = DataSettings(feed="walk", test_from="1970-07-20T12:00:00Z")
    assert first_test_ts(history_of(bench), data) == 201 * DAY
    assert (windows_of(bench, data)[1].data.ts_close >= 201 * DAY).sum() == 100


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (DataSettings(feed="wolk"), ["millrace.bars.v1", "'wolk'", "got walk/AAA/1d", "replay the feed first"]),
        (DataSettings(feed="walk", interval="1h"), ["interval 1h", "got walk/AAA/1d"]),
        (DataSettings(feed="walk", symbols=("AAA", "ZZZ")), ["for ZZZ", "another feed or symbol"]),
        (DataSettings(feed="walk", adjusted=False), ["unadjusted bars", "got walk/AAA/1d adjusted"]),
    ],
)
def test_bars_that_are_not_there_are_named_with_what_is(bench: Any, data: DataSettings, words: list[str]) -> None:
    bench.send_walks("AAA")
    with pytest.raises(WindowError) as caught:
        history_of(bench, data)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_empty_topic_is_called_so(bench: Any) -> None:
    with pytest.raises(WindowError, match="got an empty topic"):
        history_of(bench)


@pytest.mark.parametrize("moment", ["1969-12-31T00:00:00Z", "1971-01-01T00:00:00Z"])
def test_a_cut_outside_the_history_is_refused(bench: Any, moment: str) -> None:
    bench.send_walks("AAA")
    with pytest.raises(WindowError, match=r"data.test_from .*: expected a time inside the history 1970-01-02"):
        first_test_ts(history_of(bench), DataSettings(feed="walk", test_from=moment))


@pytest.mark.parametrize(("split", "warm_up_bars"), [("train", 240), ("test", 300)])
def test_a_window_without_room_for_an_episode_is_refused(bench: Any, split: Any, warm_up_bars: int) -> None:
    bench.send_walks("AAA")
    history = history_of(bench)
    cut = first_test_ts(history, DATA)
    with pytest.raises(WindowError, match=rf"{split} window: .* more than {warm_up_bars} bars .*AAA 240; shorten env"):
        open_window(history, split, cut, EnvSettings(window=warm_up_bars - 1))
    if split == "train":
        assert len(open_window(history, split, cut, EnvSettings(window=warm_up_bars - 2)).data.symbols) == 1


# --- portfolios -------------------------------------------------------------------------------------------------------

PORTFOLIO = EnvSettings(window=WARM_UP - 1, starts="whole", portfolio=True, actions="weights")


def weekdays(walk: SymbolBars) -> SymbolBars:
    """The same without every sixth and seventh bar."""
    return without(walk, np.arange(len(walk)) % 7 >= 5)


def test_a_portfolio_begins_its_test_at_the_cut_whatever_bars_its_symbols_have(
    bench: Any, bars: Any, record: Any
) -> None:
    often, seldom = bars("AAA", 300), weekdays(bars("BBB", 300))
    bench.send(record(often, 0, 300), record(seldom, 0, len(seldom)))
    train, test = windows_of(bench, env=PORTFOLIO)
    cut = first_test_ts(history_of(bench), DATA)
    env = TradingEnv(test.data, PORTFOLIO)
    _, info = env.reset(seed=1)
    assert (info["symbol"], info["start_row"]) == ("portfolio", 239)
    env.step(np.array([0.5, 0.5], dtype=np.float32))
    assert env.episode_record().steps_table["ts"].tolist() == [cut]
    assert train.data.symbols == test.data.symbols == ("AAA", "BBB")
    assert max(train.data.on_common_clock().ts_close) < cut


@pytest.mark.parametrize(("first", "split"), [(250, "train"), (-100, "test")])
def test_a_portfolio_needs_all_its_symbols_on_both_sides(
    bench: Any, bars: Any, record: Any, first: int, split: str
) -> None:
    late = bars("BBB", 300, first=first)
    bench.send(record(bars("AAA", 300), 0, 300), record(late, 0, 300 if first < 0 else 50))
    data = DataSettings(feed="walk", test_from="1970-08-29T00:00:00Z")
    with pytest.raises(WindowError, match=f"{split} window: .* every symbol of the portfolio, got none of BBB"):
        windows_of(bench, data, env=PORTFOLIO)


# --- opening a recorded window again ----------------------------------------------------------------------------------


def facts_of(bench: Any) -> CheckpointFacts:
    train, _ = windows_of(bench)
    scaler = Scaler.fit(train.data)
    return CheckpointFacts(
        run_id=bench.run_id,
        attempt=1,
        iteration=1,
        seed=1,
        data=DATA,
        env=ENV,
        scaler=scaler.to_dict(),
        first_test_ts=first_test_ts(history_of(bench), DATA),
        windows=[window.opened for window in windows_of(bench, scaler=scaler.version)],
    )


def reopen(bench: Any, facts: CheckpointFacts) -> dict[str, Window]:
    with open_log(bench.address) as log:
        return reopen_windows(log, facts)


def test_a_recorded_window_reopens_as_it_was_though_the_feed_has_gone_on(bench: Any, bars: Any, record: Any) -> None:
    walk = bars("AAA", 400)
    bench.send(record(walk, 0, 300))
    facts = facts_of(bench)
    bench.send(record(walk, 300, 400), record(bars("NEW", 300), 0, 300))
    again = reopen(bench, facts)
    assert [again[split].opened for split in ("train", "test")] == facts.windows
    assert again["train"].data.symbols == ("AAA",)


def test_offsets_with_gaps_reopen_alike(bench: Any, bars: Any, record: Any) -> None:
    walk = bars("AAA", 300)
    with SqliteLog(bench.root / "log", gap_seed=3) as log, log.producer() as producer:
        from eventlog.log import Record

        for start in range(0, 300, 10):
            producer.send([Record(TOPICS["bars"].name(), *record(walk, start, start + 10).encode())])
    facts = facts_of(bench)
    assert facts.windows[0].end_offsets[0] > 30
    assert reopen(bench, facts)["test"].opened == facts.windows[1]


def test_expired_offsets_are_named_with_those_that_are_left(bench: Any, bars: Any, record: Any) -> None:
    walk = bars("AAA", 300)
    bench.send(*(record(walk, start, start + 100) for start in (0, 100, 200)))
    facts = facts_of(bench)
    topic, partition = facts.windows[0].topic, facts.windows[0].partitions[0]
    with SqliteLog(bench.root / "log") as log:
        log.trim(topic, partition, 1)
    with pytest.raises(OffsetOutOfRangeError, match=rf"{topic}\[{partition}\]: .* 1\.\.3 .* got 0\.\.3"):
        reopen(bench, facts)


def test_another_topic_of_the_same_name_is_refused(bench: Any) -> None:
    bench.send_walks("AAA")
    opened = windows_of(bench)[0].opened
    shutil.rmtree(bench.root / "log")
    bench.__post_init__()
    bench.send_walks("AAA")
    with open_log(bench.address) as log:
        with pytest.raises(WindowError, match=rf"window {opened.window_id}: expected topic .* on its own log"):
            reopen_history(log, opened, DATA)
        # The same log, where only the topic was made again.
        moved = opened.model_copy(update={"cluster_id": log.cluster_id})
        with pytest.raises(WindowError, match=rf"id {opened.topic_id}.*got id {log.topic(opened.topic).topic_id}"):
            reopen_history(log, moved, DATA)


def test_other_bars_at_the_recorded_offsets_are_refused(bench: Any) -> None:
    bench.send_walks("AAA")
    facts = facts_of(bench)
    wrong = facts.windows[1].model_copy(update={"data_hash": "0" * 32})
    with pytest.raises(WindowError, match=r"test window .*: expected bars with hash 0{32}, got [0-9a-f]{32}"):
        reopen(bench, facts.model_copy(update={"windows": [facts.windows[0], wrong]}))


def test_a_window_holds_what_the_market_model_takes(bench: Any) -> None:
    bench.send_walks("AAA")
    data = windows_of(bench)[0].data
    assert isinstance(data, MarketData)
    env = TradingEnv(data, EnvSettings(window=WARM_UP - 1))
    assert env.reset(seed=1)[1]["symbol"] == "AAA"
