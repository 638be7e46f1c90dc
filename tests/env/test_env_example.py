from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_example_in_plain_gymnasium_prints_its_episodes():
    done = subprocess.run(
        [sys.executable, "-W", "error", "examples/trading_env_gymnasium.py"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "own_it_always: 21,380.33 after 949 days (end_of_data)" in done.stdout
    assert "33 closed trades" in done.stdout
