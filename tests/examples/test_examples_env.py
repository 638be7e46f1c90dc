"""The examples of the market model run as they stand, in seconds, and print what they promise."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
MONEY = r"([\d,]+\.\d\d)"


def run(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run an example in this process: another one would import torch again."""
    monkeypatch.syspath_prepend(str(EXAMPLES))  # as `python examples/NAME.py` does
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    return capsys.readouterr().out


def equities(text: str) -> dict[str, float]:
    rows = re.findall(rf"^(\w[\w ]*?) +{MONEY} +-?\d+\.\d%", text, re.MULTILINE)
    return {name: float(value.replace(",", "")) for name, value in rows}


def test_plain_gymnasium(monkeypatch, capsys):
    text = run("trading_env_gymnasium.py", monkeypatch, capsys)
    assert "own_it_always: 21,380.33 after 949 days (end_of_data)" in text
    assert "33 closed trades" in text


def test_stable_baselines3(monkeypatch, capsys):
    import torch

    threads = torch.get_num_threads()
    text = run("trading_env_sb3.py", monkeypatch, capsys, "--steps", "1024")
    torch.set_num_threads(threads)  # as other tests found it
    found = equities(text)
    assert set(found) == {"PPO", "flat", "buy_and_hold", "sma_cross", "momentum", "random"}
    assert found["flat"] == 10_000.0
    assert found["buy_and_hold"] > 15_000.0
    assert found["random"] < found["buy_and_hold"]


def test_portfolio_of_five_stocks(monkeypatch, capsys):
    text = run("trading_env_portfolio.py", monkeypatch, capsys)
    assert "AAPL, FB, GOOG, IBM, MSFT, 2012-" in text
    found = equities(text)
    assert set(found) == {"inverse volatility", "flat", "buy_and_hold", "sma_cross", "momentum", "random"}
    assert found["inverse volatility"] > 900_000.0
    assert found["flat"] > 1_000_000.0  # interest on cash


def test_own_feature_and_reward(monkeypatch, capsys):
    text = run("trading_env_own_feature.py", monkeypatch, capsys)
    assert "feature 'trading_env_own_feature:gap(10)': no look-ahead" in text
    growth, reward = map(
        float, re.search(r"mean log growth ([+-]\d\.\d{4}), mean reward ([+-]\d\.\d{4})", text).groups()
    )
    assert reward < growth  # exposure has its price
