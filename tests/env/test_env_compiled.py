"""Compiled code is kept on disk, works where it cannot be, and reads and writes within its arrays."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from env import kernel
from env.ahead import compile_ahead
from env.compiled import is_on_disk

ROOT = Path(__file__).parents[2]


def test_compiling_ahead_leaves_nothing_to_compile() -> None:
    compile_ahead(lambda _: None)
    lines: list[str] = []
    compile_ahead(lines.append)
    assert lines == []
    assert is_on_disk(kernel.step_all)
    assert is_on_disk(kernel.step_choice)
    assert is_on_disk(kernel.step_one)


def test_without_a_place_on_disk_the_process_compiles_for_itself(tmp_path: Path) -> None:
    # No directory can be made below a file.
    (tmp_path / "file").touch()
    program = (
        "from env.compiled import compiled, is_on_disk\n"
        "@compiled\n"
        "def double(number): return 2.0 * number\n"
        "print(double(4.0), is_on_disk(double))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path / "file"), "XDG_CACHE_HOME": "/dev/null"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["8.0", "False"]


def test_layouts_that_the_kernel_does_not_name_are_refused() -> None:
    program = (
        "import numpy as np\n"
        "from env import state\n"
        "order = [name for name in state.HOLDING.names if name != 'fee'] + ['fee']\n"
        "state.HOLDING = np.dtype([(name, state.HOLDING[name]) for name in order], align=True)\n"
        "import env.kernel\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert f"expected the layouts {kernel.LAYOUTS} of env/state.py" in done.stderr
    assert "set LAYOUTS to that" in done.stderr


@pytest.mark.slow
def test_every_kind_of_environment_stays_within_its_arrays(tmp_path: Path) -> None:
    """With numba's own check of every index, which costs too much to be on always."""
    environment = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    tests = [f"tests/env/test_env_{name}.py" for name in ("vector", "memory", "cases", "portfolio")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *tests],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3_000:]
