"""The examples run as they stand, each in a directory of its own.

Those of the market model, ``trading_env_*.py``, have theirs in ``test_examples_env.py``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_a_users_own_cartpole_script_gets_its_episodes_into_clickhouse(tmp_path: Path) -> None:
    ray_folder = tempfile.mkdtemp(prefix="mr", dir="/tmp")  # unix sockets have short names only
    try:
        done = subprocess.run(
            [sys.executable, str(EXAMPLES / "cartpole_events.py")],
            cwd=tmp_path,
            env=os.environ | {"RAY_TMPDIR": ray_folder},
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
    finally:
        shutil.rmtree(ray_folder, ignore_errors=True)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert len(re.findall(r"^iteration \d: \d+\.\d$", done.stdout, re.MULTILINE)) == 5
    stored = re.findall(r"^ +(\d)  +(\d+)  +(\d+\.\d)  +(\d+)$", done.stdout, re.MULTILINE)
    assert [row[0] for row in stored] == ["1", "2", "3", "4", "5"]
    assert float(stored[-1][2]) > float(stored[0][2]), "it learns"
    assert re.search(r"events of 3 publishers are stored, each once", done.stdout), done.stdout
