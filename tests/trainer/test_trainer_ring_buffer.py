"""The replay buffers against the truth of every transition, and against RLlib's own."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import numpy as np
import pytest
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.utils.replay_buffers.prioritized_episode_buffer import PrioritizedEpisodeReplayBuffer
from rollout_makers import SYMBOLS, FakeRunner

from schemas.errors import InputError
from trainer.priority_tree import PriorityTree
from trainer.ring_buffer import PrioritizedRingBuffer, RingBuffer
from trainer.rollout import FullObservations, IndexedObservations
from trainer.transitions import Transitions

BUFFERS = (RingBuffer, PrioritizedRingBuffer)


def filled(kind: type[RingBuffer], runners: list[FakeRunner], rounds: int = 12, **options: Any) -> RingBuffer:
    """A buffer with rollouts of several lengths, from runners in turn."""
    buffer = kind(**options)
    buffer.rng = np.random.default_rng(3)
    for number in range(rounds):
        buffer.add([runner.sample(1 + (number * 3) % 5) for runner in runners])
    return buffer


def check(batch: Transitions, runners: list[FakeRunner], n_step: int, gamma: float) -> Counter[float]:
    """Compare every transition with the truth; how often each start was drawn."""
    truth = {account: step for runner in runners for account, step in runner.truth.items()}
    after = {account: following for runner in runners for account, following in runner.after.items()}
    newest = {state[2] for runner in runners for state in runner.now}
    seen, following = batch.observations, batch.next_observations
    assert isinstance(seen, IndexedObservations)
    assert isinstance(following, IndexedObservations)
    starts = Counter[float]()
    for index in range(len(batch)):
        account = float(seen.accounts[index, 0])
        starts[account] += 1
        step, total, spanned = truth[account], 0.0, 0
        assert (seen.rows[index], seen.symbol_names[seen.symbols[index]]) == (step.row, SYMBOLS[step.symbol])
        while True:
            total += gamma**spanned * step.reward
            spanned += 1
            account = after[account]
            if spanned == n_step or step.terminated or step.truncated or account in newest:
                break
            step = truth[account]
        assert batch.n_step[index] == spanned
        assert batch.rewards[index] == pytest.approx(total, abs=1e-5)
        assert following.accounts[index, 0] == account
        assert (following.rows[index], following.symbols[index]) == (step.row + 1, seen.symbols[index])
        assert batch.terminated[index] == step.terminated
    return starts


@pytest.mark.parametrize("kind", BUFFERS)
@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("capacity", [1_000, 60])
def test_every_transition_is_true_across_rollouts_of_two_runners(
    kind: type[RingBuffer], n_step: int, capacity: int
) -> None:
    runners = [FakeRunner(4, seed=1, source="a"), FakeRunner(3, seed=2, source="b")]
    buffer = filled(kind, runners, rounds=20, capacity=capacity)
    [batch] = buffer.sample(600, n_step=n_step, gamma=0.9)
    starts = check(batch, runners, n_step, 0.9)
    assert len(buffer) == min(capacity, sum(len(runner.truth) for runner in runners))
    assert len(starts) > 0.6 * min(len(buffer), 600)


def test_a_range_of_steps_is_drawn_as_rllib_draws_it() -> None:
    runner = FakeRunner(4, ends=0.0)
    [batch] = filled(RingBuffer, [runner], capacity=1_000).sample(500, n_step=(2, 5), gamma=0.9)
    assert set(np.unique(batch.n_step)) == {1, 2, 3, 4}  # 1: the newest steps
    assert np.mean(batch.n_step == 1) < 0.1


def test_whole_observations_are_kept_as_they_are() -> None:
    runner = FakeRunner(3, full=True)
    buffer = filled(RingBuffer, [runner], capacity=500)
    [batch] = buffer.sample(200)
    assert isinstance(batch.observations, FullObservations)
    assert isinstance(batch.next_observations, FullObservations)
    left = [runner.after[float(account)] for account in batch.observations.values[:, 2]]
    assert batch.next_observations.values[:, 2].tolist() == left


def test_a_gap_or_a_restart_ends_what_was_open() -> None:
    runner = FakeRunner(3, ends=0.0)
    buffer = RingBuffer(100)
    buffer.add([runner.sample(4)])
    runner.sample(2)  # lost
    later = runner.sample(4)
    buffer.add([later])
    [batch] = buffer.sample(400, n_step=8)
    assert batch.n_step.max() == 4
    restarted = FakeRunner(3, seed=9, source="another life", ends=0.0)
    buffer.add([restarted.sample(4)])
    [batch] = buffer.sample(400, n_step=8)
    assert batch.n_step.max() == 4


def test_rows_that_are_no_steps_are_left_out() -> None:
    runner = FakeRunner(3, ends=0.0)
    rollout = runner.sample(6)
    valid = np.ones((6, 3), bool)
    valid[2, 1] = False
    rollout.truncateds[1, 1] = True
    object.__setattr__(rollout, "valid", valid)
    buffer = RingBuffer(100)
    buffer.add([rollout])
    assert len(buffer) == 17
    [batch] = buffer.sample(500, n_step=6)
    assert isinstance(batch.observations, IndexedObservations)
    gap = float(rollout.observations.accounts[2, 1, 0])  # type: ignore[union-attr]
    assert gap not in batch.observations.accounts[:, 0]


@pytest.mark.parametrize("kind", BUFFERS)
def test_bars_that_leave_the_window_take_their_transitions_along(kind: type[RingBuffer]) -> None:
    runners = [FakeRunner(4, seed=1, source="a"), FakeRunner(3, seed=2, source="b")]
    buffer = filled(kind, runners, rounds=20, capacity=300)
    first = {"AAA": 120, "BBB": 130}
    before = len(buffer)
    dropped = buffer.forget_before(first)
    assert 0 < dropped < before
    assert len(buffer) == before - dropped
    for _ in range(8):  # goes on, also with rows that have left
        buffer.add([runner.sample(3) for runner in runners])
    [batch] = buffer.sample(1_000, n_step=3, gamma=0.9)
    check(batch, runners, 3, 0.9)
    assert isinstance(batch.observations, IndexedObservations)
    rows, symbols = batch.observations.rows, batch.observations.symbols
    assert (rows >= np.where(symbols == 0, 120, 130)).all()
    assert buffer.forget_before({"AAA": 120}) > 0  # BBB is gone altogether
    [batch] = buffer.sample(200)
    assert set(batch.observations.symbols.tolist()) == {0}  # type: ignore[union-attr]


def test_a_window_that_counts_its_symbols_otherwise() -> None:
    runner = FakeRunner(4)
    first = runner.sample(5)
    second = runner.sample(5)
    seen: Any = second.observations
    turned = IndexedObservations(
        "w2", ("BBB", "CCC", "AAA"), seen.rows, np.where(seen.symbols == 0, 2, 0), seen.accounts
    )
    object.__setattr__(second, "observations", turned)
    last: Any = second.finals.observations
    object.__setattr__(
        second.finals,
        "observations",
        IndexedObservations("w2", turned.symbol_names, last.rows, np.where(last.symbols == 0, 2, 0), last.accounts),
    )
    buffer = RingBuffer(100)
    buffer.add([first, second])
    [batch] = buffer.sample(300, n_step=3, gamma=0.9)
    assert isinstance(batch.observations, IndexedObservations)
    assert (batch.observations.window_id, batch.observations.symbol_names) == ("w2", ("AAA", "BBB", "CCC"))
    check(batch, [runner], 3, 0.9)
    buffer.add([runner.sample(1)])  # of the window before: late, or of a runner that has not followed yet
    assert buffer.window_id == "w2"


@pytest.mark.parametrize("kind", BUFFERS)
def test_the_state_goes_on_where_it_was(kind: type[RingBuffer]) -> None:
    runner = FakeRunner(4, seed=1)
    buffer = filled(kind, [runner], rounds=30, capacity=60)
    buffer.update_priorities(np.arange(20), np.linspace(0.1, 3.0, 20).astype(np.float32))
    again = kind(80)
    again.set_state(copy.deepcopy(buffer.get_state()))
    more = runner.sample(3)
    for one in (buffer, again):
        one.add([more])
    [left], [right] = buffer.sample(50, n_step=3), again.sample(50, n_step=3)
    if kind is RingBuffer:  # the larger one has not dropped any yet, so that its draws differ
        assert len(again) == 72
    check(left, [runner], 3, 0.99)
    check(right, [runner], 3, 0.99)
    with pytest.raises(InputError, match=r"at most 10 transitions, got 60; raise capacity"):
        kind(10).set_state(buffer.get_state())


def test_seeds_reproduce_what_is_drawn() -> None:
    drawn = []
    for _ in range(2):
        buffer = filled(PrioritizedRingBuffer, [FakeRunner(4, seed=1)], capacity=100)
        drawn.append(buffer.sample(40, n_step=(1, 4))[0])
    assert drawn[0].slots.tolist() == drawn[1].slots.tolist()
    assert drawn[0].n_step.tolist() == drawn[1].n_step.tolist()


def test_draws_follow_the_priorities_and_weights_are_those_of_rllib() -> None:
    # One long episode, so that both buffers number its steps alike.
    count, alpha, beta = 50, 0.7, 0.5
    runner = FakeRunner(1, ends=0.0, full=True)
    rollout = runner.sample(count)
    ours = PrioritizedRingBuffer(count, alpha)
    ours.add([rollout])
    seen = [np.zeros(1, np.float32)] * (count + 1)
    theirs = PrioritizedEpisodeReplayBuffer(capacity=count, alpha=alpha)
    theirs.add(SingleAgentEpisode(observations=seen, actions=[0] * count, rewards=[0.0] * count, len_lookback_buffer=0))
    errors = np.random.default_rng(1).exponential(size=count).astype(np.float32)
    theirs._last_sampled_indices = list(range(count))
    theirs.update_priorities(errors)
    ours.update_priorities(np.arange(count), errors)

    [batch] = ours.sample(20_000, beta=beta)
    drawn = np.bincount(batch.slots, minlength=count) / 20_000
    wanted = errors**alpha / np.sum(errors**alpha)
    assert np.abs(drawn - wanted).max() < 0.01
    their_weights = {}
    for episode in theirs.sample(300, n_step=1, beta=beta):
        their_weights[episode.t_started] = episode.extra_model_outputs["weights"][0]
    our_weights = dict(zip(batch.slots.tolist(), batch.weights.tolist(), strict=True))
    for slot, weight in their_weights.items():
        assert our_weights[slot] == pytest.approx(weight, rel=1e-5)
    ours.add([runner.sample(1)])  # enters with the highest priority so far
    assert ours._tree[np.array([0])][0] == pytest.approx(max(1.0, float(errors.max())) ** alpha)


@pytest.mark.parametrize("size", [1, 64, 65, 5_000, 300_000])
def test_the_tree_adds_up_and_finds(size: int) -> None:
    rng = np.random.default_rng(size)
    tree, flat = PriorityTree(size), np.zeros(size)
    assert tree.total == 0.0
    for _ in range(5):
        slots = rng.integers(0, size, 300)
        values = rng.exponential(size=300)
        tree[slots] = values
        flat[slots] = values
        assert tree.total == pytest.approx(flat.sum())
        assert tree.least == flat[flat > 0].min()
    uniforms = np.concatenate([rng.random(500), [0.0, np.nextafter(1.0, 0.0)]])
    expected = np.searchsorted(np.cumsum(flat), uniforms * flat.sum(), side="right")
    drawn = tree.draw(uniforms)
    assert (flat[drawn] > 0).all()
    assert np.mean(drawn == np.minimum(expected, size - 1)) > 0.99  # rounding may fall on the other side of a border


@pytest.mark.parametrize("kind", BUFFERS)
def test_a_million_transitions_take_less_than_100_mb(kind: type[RingBuffer]) -> None:
    buffer = kind(1_000_000)
    rollout = FakeRunner(4).sample(2)
    seen: Any = rollout.observations
    wide = IndexedObservations("w", SYMBOLS, seen.rows, seen.symbols, np.zeros((3, 4, 5), np.float32))
    object.__setattr__(rollout, "observations", wide)
    object.__setattr__(rollout.finals, "observations", wide.at((slice(0, 1), slice(0, len(rollout.finals)))).at(0))
    buffer.add([rollout])
    assert 0 < buffer.nbytes < 100e6


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(InputError, match=r"expected a capacity from 1 to 2\^31 - 1 transitions, got 0"):
        RingBuffer(0)
    with pytest.raises(InputError, match=r"at least one step of 4 environments, got 3"):
        RingBuffer(3).add([FakeRunner(4).sample(2)])
    with pytest.raises(InputError, match=r"expected transitions to draw from, got none"):
        RingBuffer(3).sample(2)
    with pytest.raises(InputError, match=r"expected alpha ≥ 0, got -1"):
        PrioritizedRingBuffer(3, alpha=-1)
