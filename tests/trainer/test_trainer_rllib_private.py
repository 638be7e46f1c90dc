"""A new Ray fails here by name, before it fails somewhere else without one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import ray
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.callbacks.callbacks import RLlibCallback

from schemas.errors import OutboxError
from trainer.callbacks import driver_callbacks, finish_run
from trainer.rllib_private import TESTED_RAY, runner_callbacks


class Mine(RLlibCallback):
    def __init__(self, word: str) -> None:
        super().__init__()
        self.word = word


@pytest.fixture(scope="module")
def algorithm(ray_session: None) -> Iterator[Any]:
    config = PPOConfig().environment("CartPole-v1").env_runners(num_env_runners=0)
    config.rl_module(model_config={"fcnet_hiddens": [8]}).callbacks([partial(Mine, "here")])
    made = config.build_algo()
    yield made
    made.stop()


def test_this_is_the_ray_that_the_private_parts_were_tested_with() -> None:
    assert ray.__version__ == TESTED_RAY, "try the tests of trainer/ on this Ray, then set TESTED_RAY to it"


def test_the_callbacks_of_a_runner_are_where_rllib_private_looks_for_them(algorithm: Any) -> None:
    assert [item.word for item in runner_callbacks(algorithm.env_runner)] == ["here"]


def test_an_algorithm_without_event_callbacks_is_told_so(algorithm: Any) -> None:
    for act in (finish_run, driver_callbacks):
        with pytest.raises(OutboxError, match=r"expected EventCallbacks among its callbacks.*config.callbacks\(\)"):
            act(algorithm)
