from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from env_kinds import market, settings_of

from env.render import HEIGHT, WIDTH, Fills, draw
from env.settings import EnvSettings
from env.trading_env import TradingEnv
from env.vector_env import TradingVectorEnv
from schemas.errors import InputError

GREEN, RED, BLUE = (0, 140, 60), (200, 30, 30), (0, 114, 178)


def places(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Rows and columns of the dots of a colour, (n, 2)."""
    return np.argwhere((picture == colour).all(axis=2))


def no_fills() -> Fills:
    return Fills(*(np.zeros(0, dtype=dtype) for dtype in (np.int64, np.int64, np.float64, np.float64)))


def test_ansi_is_one_line(random_data):
    env = TradingEnv(random_data, EnvSettings(window=8), symbol="AAA", render_mode="ansi")
    env.reset(seed=1, options={"start_row": 1_100})
    assert env.render() == "AAA row 1100 position +0.0000 equity 10,000.00"
    env.step(2)
    assert env.render().startswith("AAA row 1101 position +")
    settings = settings_of("portfolio: weights")
    portfolio = TradingEnv(market(settings), settings, render_mode="ansi")
    _, info = portfolio.reset(seed=1)
    assert portfolio.render() == f"portfolio row {info['start_row']} equity 10,000.00"


@pytest.mark.parametrize("kind", ["targets", "ruin", "portfolio: weights, everything on"])
@pytest.mark.parametrize("record", ["fills", "steps"])
def test_picture_can_be_had_at_any_time_of_an_episode(kind, record):
    settings = settings_of(kind, record=record)
    env = TradingEnv(market(settings), settings, render_mode="rgb_array")
    with pytest.raises(InputError, match="reset it first"):
        env.render()
    env.reset(seed=1)
    env.action_space.seed(1)
    ended, pictures = False, [env.render()]
    while not ended:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        ended = terminated or truncated
        pictures.append(env.render())
    for picture in pictures:
        assert (picture.shape, picture.dtype) == ((HEIGHT, WIDTH, 3), np.uint8)
    assert all((one != other).any() for one, other in pairwise(pictures))


def test_buys_are_marked_green_and_sells_red(case_env):
    env = case_env()
    env.render_mode = "rgb_array"
    assert not places(env.render(), GREEN).size
    env.step(2)
    assert places(env.render(), GREEN).size
    assert not places(env.render(), RED).size
    env.step(1)
    assert places(env.render(), RED).size


def test_line_goes_from_corner_to_corner_without_gaps():
    rising = np.linspace(10.0, 20.0, 50)
    line = places(draw("", rising[:, None], np.full(50, 1.0), no_fills()), BLUE)
    rows, columns = line.T
    assert (columns.min(), columns.max()) == (10, WIDTH - 11)
    assert set(columns) == set(range(10, WIDTH - 10))
    left, right = rows[columns == columns.min()], rows[columns == columns.max()]
    assert left.min() > right.max()  # higher on the picture is a lower row
    for column in range(11, WIDTH - 10):
        assert rows[columns == column].max() >= rows[columns == column - 1].min() - 1


def test_long_episode_keeps_its_extremes():
    prices = np.full(20_000, 10.0)
    prices[7_777], prices[12_345] = 20.0, 5.0
    rows, columns = places(draw("", prices[:, None], prices, no_fills()), BLUE).T
    spike = round(10 + 7_777 / 19_999 * (WIDTH - 21))
    assert rows[columns == spike].min() == rows.min()
    assert columns[rows == rows.min()].tolist()[0] in (spike, spike + 1)


def test_fills_are_drawn_at_their_bar_and_price():
    prices = np.linspace(10.0, 20.0, 11)[:, None]
    fills = Fills(np.array([5]), np.array([0]), np.array([1.0]), np.array([15.0]))
    rows, columns = places(draw("", prices, prices[:, 0], fills), GREEN).T
    assert columns[rows == rows.min()].tolist() == [round(10 + 0.5 * (WIDTH - 21))]


def test_title_is_written():
    empty, titled = (draw(text, np.ones((2, 1)), np.ones(2), no_fills()) for text in ("", "AAA row 12"))
    changed = np.argwhere((empty != titled).any(axis=2))
    assert changed[:, 0].max() < 20
    assert changed[:, 1].max() < 10 + 10 * 8


def test_vector_renders_every_environment():
    settings = settings_of("targets")
    vector = TradingVectorEnv(market(settings), settings, num_envs=3, render_mode="rgb_array")
    vector.reset(seed=1)
    for _ in range(5):
        vector.step(np.array([0, 1, 2]))
    one, two, three = vector.render()
    assert one.shape == two.shape == three.shape == (HEIGHT, WIDTH, 3)
    assert places(one, RED).size
    assert not places(two, RED).size
    assert not places(two, GREEN).size
    assert places(three, GREEN).size


def test_without_a_mode_there_is_nothing_to_see(random_data):
    env = TradingEnv(random_data, EnvSettings(window=8))
    env.reset(seed=1)
    assert env.render() is None
    vector = TradingVectorEnv(random_data, EnvSettings(window=8), num_envs=2)
    vector.reset(seed=1)
    assert vector.render() is None
