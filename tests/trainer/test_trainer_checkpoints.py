"""Checkpoints: a run goes on where it was, in this process, in another, and by RLlib's own means."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from eventlog.forwarder_control import stop_forwarder
from schemas.errors import InputError
from schemas.ids import PublisherId
from trainer import checkpoints
from trainer.settings import OutboxSettings

ROOT = Path(__file__).resolve().parents[2]

# A user's own script, run in a process of its own. The first argument chooses what it does.
SCRIPT = """
import json, sys
from ray.rllib.algorithms.algorithm import Algorithm
import millrace

what, path, log = sys.argv[1:]
if what == "closed":
    try:
        Algorithm.from_checkpoint(path)
    except millrace.MillraceError as error:
        print(json.dumps({"type": type(error).__name__, "message": str(error)}))
        sys.exit()
with millrace.open_checkpoint(path, log=log) as facts:
    algorithm = Algorithm.from_checkpoint(path)
    before = algorithm.iteration
    algorithm.train()
    print(json.dumps({"before": before, "after": algorithm.iteration, "recorded": facts.iteration}))
    millrace.finish_run(algorithm)
    algorithm.stop()
"""


@dataclass
class Story:
    """A run trained for two iterations, resumed for two, then opened by a script, which trained one."""

    bench: Any
    run_id: str
    first: Path
    second: Path
    opened: subprocess.CompletedProcess[str]
    closed: subprocess.CompletedProcess[str]
    run: Any

    def attempt(self, number: int, event_type: str) -> list[Any]:
        return [event.data for event in self.run.events if event.attempt == number and event.event_type == event_type]


@pytest.fixture(scope="module")
def story(new_bench: Callable[[], Any], ray_session: None) -> Story:
    bench = new_bench()
    bench.send_walks("AAA", "BBB")
    job = bench.job("PPO", tables={"training": {"train_batch_size_per_learner": 100}})
    begun = bench.train(job).result
    bench.send_walks("CCC")  # The feed goes on; the run keeps its windows.
    more = job.train.model_copy(update={"iterations": 4, "seed": 99})
    resumed = bench.train(replace(job, train=more, resume_from=begun.checkpoint)).result
    running = {
        what: subprocess.Popen(
            [sys.executable, "-c", SCRIPT, what, str(resumed.checkpoint), bench.address],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for what in ("opened", "closed")
    }
    done = {}
    for what, process in running.items():
        out, err = process.communicate(timeout=120)
        done[what] = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    return Story(bench, begun.run_id, begun.checkpoint, resumed.checkpoint, run=bench.run(resumed), **done)


def test_a_resumed_run_is_its_next_attempt(story: Story) -> None:
    assert {event.run_id for event in story.run.events} == {story.run_id}
    assert (story.run.result.run_id, story.run.result.attempt) == (story.run_id, 2)
    attempts = [story.attempt(number, "attempt.started") for number in (1, 2, 3)]
    assert [[one.resumed_from_iteration for one in attempt] for attempt in attempts] == [[None], [2], [4]]
    assert len(story.run.of("run.started")) == 1
    assert {PublisherId.parse(e.publisher_id).attempt for e in story.run.events if e.attempt == 2} == {2}


def test_iterations_and_steps_go_on_from_the_checkpoint(story: Story) -> None:
    iterations = [[one.iteration for one in story.attempt(number, "iteration.ended")] for number in (1, 2, 3)]
    assert iterations == [[1, 2], [3, 4], [5]]
    totals = [one.env_steps_total for number in (1, 2, 3) for one in story.attempt(number, "iteration.ended")]
    assert totals == [100, 200, 300, 400, 500]
    assert story.run.result.iterations == 4


def test_episodes_of_a_resumed_run_carry_its_iterations(story: Story) -> None:
    for number, wanted in ((1, {1, 2}), (2, {3, 4}), (3, {5})):
        started = {one.iteration for one in story.attempt(number, "episode.started") if one.split == "train"}
        ended = {one.iteration for one in story.attempt(number, "episode.ended") if one.split == "train"}
        assert started == wanted
        assert ended <= wanted


def test_windows_scaler_and_seed_stay_those_of_the_run(story: Story) -> None:
    for number in (2, 3):
        assert story.attempt(number, "window.opened") == story.attempt(1, "window.opened")
    assert story.attempt(1, "window.opened")[0].symbols == ["AAA", "BBB"]
    first, second = checkpoints.load_facts(story.first), checkpoints.load_facts(story.second)
    assert first.model_copy(update={"attempt": 2, "iteration": 4}) == second
    assert second.seed == 7


def test_rllibs_own_from_checkpoint_works_with_the_windows_open(story: Story) -> None:
    assert story.opened.returncode == 0, story.opened.stderr
    assert json.loads(story.opened.stdout.splitlines()[-1]) == {"before": 4, "after": 5, "recorded": 4}


def test_rllibs_own_from_checkpoint_says_how_to_open_the_windows(story: Story) -> None:
    # Not an abort of the process, as RLlib's is where a checkpoint holds a reference to an object.
    assert story.closed.returncode == 0, story.closed.stderr
    told = json.loads(story.closed.stdout.splitlines()[-1])
    assert told["type"] == "WindowError"
    for word in (story.run_id, "not open", "millrace.open_checkpoint(PATH, log=ADDRESS)", "from_checkpoint(PATH)"):
        assert word in told["message"]


def test_the_newest_complete_checkpoint_is_found(story: Story, tmp_path: Path) -> None:
    folder = story.first.parent
    assert [story.first.name, story.second.name] == ["iteration-000002", "iteration-000004"]
    assert checkpoints.latest(folder) == story.second
    for name in ("iteration-000009.partial", "iteration-000004.old-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / checkpoints.SIDECAR).write_text("{}")
    (tmp_path / "iteration-000010").mkdir()  # RLlib's state without ours.
    with pytest.raises(InputError, match=r"run folder .*: expected a checkpoint iteration-NNNNNN in it, got none"):
        checkpoints.latest(tmp_path)


class _Interrupted:
    """Stands for an algorithm whose process ends in the middle of saving."""

    def save_to_path(self, path: str) -> None:
        Path(path).mkdir(parents=True)
        (Path(path) / "algorithm_state.pkl").write_bytes(b"half")
        raise KeyboardInterrupt


def test_an_interrupted_checkpoint_is_not_taken_for_one(story: Story, tmp_path: Path) -> None:
    facts = checkpoints.load_facts(story.first)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(_Interrupted(), tmp_path, facts)
    with pytest.raises(InputError):
        checkpoints.latest(tmp_path)
    # The next one of that iteration is whole, with nothing of the interrupted one in it.
    saved = checkpoints.save(_Whole(), tmp_path, facts)
    assert checkpoints.latest(tmp_path) == saved
    assert sorted(path.name for path in saved.iterdir()) == [checkpoints.SIDECAR, "whole"]


class _Whole:
    def save_to_path(self, path: str) -> None:
        Path(path).mkdir(parents=True, exist_ok=True)
        (Path(path) / "whole").touch()


def test_a_second_checkpoint_of_an_iteration_counts_and_the_first_is_kept(story: Story, tmp_path: Path) -> None:
    facts = checkpoints.load_facts(story.first)
    saved = [checkpoints.save(_Whole(), tmp_path, facts) for _ in range(3)]
    assert set(saved) == {tmp_path / "iteration-000002"}
    assert checkpoints.latest(tmp_path) == saved[0]
    assert len(list(tmp_path.glob("iteration-000002.old-*"))) == 2


@pytest.mark.parametrize("content", [None, "not json", '{"run_id": 3}'])
def test_a_folder_that_is_no_checkpoint_is_called_so(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / checkpoints.SIDECAR).write_text(content)
    with pytest.raises(InputError, match=rf"checkpoint {tmp_path}.*{checkpoints.SIDECAR}") as caught:
        checkpoints.load_facts(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_resumed_run_is_its_next_attempt_also_where_the_outbox_directory_was_lost(story: Story) -> None:
    elsewhere = OutboxSettings(directory=story.bench.root / "another-outbox")
    job = story.bench.job("PPO", tables={"training": {"train_batch_size_per_learner": 100}}, train={"iterations": 3})
    try:
        result = story.bench.train(replace(job, outbox=elsewhere, resume_from=story.first)).result
        assert (result.run_id, result.attempt) == (story.run_id, 2)
    finally:
        stop_forwarder(elsewhere.directory)
