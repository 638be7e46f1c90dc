"""A demo in a process of its own, as a terminal would run it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from local.kafka_jars import ensure_jars, java
from millrace.settings import load_settings
from millrace.stack import LocalStack
from schemas.errors import LocalError

# Tests import system_faults, which lies beside them.
sys.path.insert(0, str(Path(__file__).parent))

# Small, but all of it: two runners, several episodes and fragments, both splits.
SMALL = (
    "env.episode_length=64",
    "train.checkpoint_every=0",
    "algorithm.env_runners.num_env_runners=2",
    "algorithm.env_runners.num_envs_per_env_runner=4",
    "algorithm.reporting.min_sample_timesteps_per_iteration=2000",
)


class Demo:
    """``millrace demo``, or another command, in a session of its own, with its output as it comes."""

    def __init__(self, folder: Path, ray_folder: str, command: tuple[str, ...], arguments: tuple[str, ...]) -> None:
        self.engine = command[2] if command[1:2] == ("--log",) else "sqlite"
        self.state_dir = folder / ".millrace"
        self.lines: list[str] = []
        self._mark = uuid.uuid4().hex
        self._folder = folder
        self.environment = os.environ | {
            "PYTHONUNBUFFERED": "1",
            # Every process that comes from this demo inherits it and can be found by it.
            "MILLRACE_TEST_MARK": self._mark,
            "RAY_TMPDIR": ray_folder,
        }
        sets = [part for override in (*SMALL, *arguments) for part in ("--set", override)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "millrace.cli", *command, *sets],
            cwd=folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as stream:
            for line in stream:
                self.lines.append(line.rstrip("\n"))

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    @property
    def run_id(self) -> str:
        found = re.search(r"run ([0-9a-f-]{36})", self.output)
        assert found, self.output
        return found[1]

    def wait_for(self, pattern: str, timeout_s: float = 120.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not re.search(pattern, self.output):
            assert time.monotonic() < deadline, f"no {pattern!r} in:\n{self.output}"
            assert self._reader.is_alive(), f"ended without {pattern!r}:\n{self.output}"
            time.sleep(0.02)

    def signal(self, number: int, *, group: bool = True) -> float:
        """Signal the whole foreground group, Ray's processes with it, as a terminal does. Returns when."""
        (os.killpg if group else os.kill)(self.process.pid, number)
        return time.monotonic()

    def finish(self, timeout_s: float = 150.0) -> int:
        """Wait for the end. Returns the exit code: negative after death by a signal."""
        try:
            return self.process.wait(timeout_s)
        finally:
            if self.process.poll() is None:
                self.process.kill()
            self._reader.join(10)

    def processes(self, name: str = "") -> list[psutil.Process]:
        """What runs of this demo, by a part of its command line."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("MILLRACE_TEST_MARK") == self._mark and name in " ".join(process.cmdline()):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
                continue
        return found

    def left_running(self, within_s: float = 8.0) -> list[str]:
        """What still runs some seconds later. The forwarder may: it ends by itself, once it has nothing to do."""
        deadline = time.monotonic() + within_s
        while True:
            left = [p for p in self.processes() if "eventlog.forwarder" not in " ".join(_cmdline(p))]
            if not left or time.monotonic() > deadline:
                return [" ".join(_cmdline(p))[:200] for p in left]
            time.sleep(0.1)

    def end(self) -> None:
        for process in self.processes():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.finish(10)

    def command(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run a line in a shell, in the demo's directory."""
        return subprocess.run(
            ["sh", "-c", line],
            cwd=self._folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def stack(self) -> LocalStack:
        """The demo's engines, to be started again."""
        return LocalStack(load_settings(None, [f"local.state_dir={self.state_dir}", f"log.engine={self.engine}"]))


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture
def run_demo(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    """A function: settings → a demo, or another command, that has started. All of a test share one state directory."""
    demos: list[Demo] = []
    # Unix sockets have short names only.
    ray_folder = tempfile.mkdtemp(prefix="mr", dir="/tmp")

    def start(*arguments: str, command: tuple[str, ...] = ("demo",)) -> Demo:
        demos.append(Demo(tmp_path, ray_folder, command, arguments))
        return demos[-1]

    yield start
    for demo in demos:
        demo.end()
    shutil.rmtree(ray_folder, ignore_errors=True)


@pytest.fixture
def kafka() -> None:
    """Apache Kafka can be started here. Where it cannot, CI fails."""
    try:
        java()
        ensure_jars()
    except LocalError as error:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(error))
