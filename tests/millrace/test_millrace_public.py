"""What ``import millrace`` gives, what it costs, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import millrace


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    # As `python script.py` would: the working directory comes first on the path.
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_public_names_are_exactly_these_and_all_resolve() -> None:
    assert millrace.__all__ == [
        "Bars",
        "EnvSettings",
        "EpisodeRecord",
        "EventCallbacks",
        "EventSettings",
        "LocalStack",
        "MarketData",
        "MillraceError",
        "RewardInput",
        "Scaler",
        "SymbolBars",
        "TradingEnv",
        "TradingVectorEnv",
        "__version__",
        "baselines",
        "check_feature",
        "feature",
        "finish_run",
        "open_checkpoint",
        "play",
        "publish_events",
        "use_fast_path",
    ]
    assert dir(millrace) == millrace.__all__
    for name in millrace.__all__:
        assert getattr(millrace, name) is not None
    assert millrace.LocalStack.__module__ == "millrace.stack"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'millrace' has no attribute 'TradingEnvironment'"):
        millrace.TradingEnvironment  # noqa: B018


def test_import_needs_neither_ray_nor_torch_and_registers_the_environment(workdir: Path) -> None:
    code = """
import sys, millrace, gymnasium
assert gymnasium.spec("millrace/Trading-v0")
import millrace.cli
millrace.TradingEnv, millrace.LocalStack, millrace.MillraceError
heavy = {"ray", "torch", "pandas", "chdb"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else 0)
"""
    done = python(code, workdir)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["env.py", "schemas.py", "local/__init__.py"])
def test_a_file_that_shadows_a_package_of_ours_is_named(workdir: Path, name: str) -> None:
    (workdir / name).parent.mkdir(exist_ok=True)
    (workdir / name).write_text("")
    done = python("import millrace", workdir)
    assert done.returncode == 1
    last = done.stderr.strip().rpartition("\n")[2]
    assert last.startswith("ImportError: millrace needs its own package ")
    assert str(workdir / name) in last
    assert "rename or move that file" in last
