"""The window store: a small Ray actor that holds the current window of each split of a run.

``env_config`` names the store and never carries bars or an ObjectRef: arrays would be copied into every runner and
every checkpoint, and a stale reference aborts the process inside ``Algorithm.from_checkpoint``. The env creator asks
the store once per creation, so a restarted runner gets the current window, not that of its constructor.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from env.market_data import MarketData
from schemas.errors import WindowError
from schemas.payloads import Split
from trainer.windows import Window

NAMESPACE = "millrace"


def store_name(run_id: str) -> str:
    """The actor's name, the same for every attempt of a run: checkpoints hold it."""
    return f"windows-{run_id}"


@ray.remote(num_cpus=0)
class _WindowStore:
    def __init__(self) -> None:
        self._windows: dict[str, tuple[dict[str, Any], list[Any]]] = {}
        self._resumed_from: int | None = None

    def begin(self, resumed_from: int | None) -> None:
        self._resumed_from = resumed_from

    def resumed_from(self) -> int | None:
        return self._resumed_from

    def put(self, split: str, opened: dict[str, Any], boxed: list[Any]) -> None:
        """Keep a window. ``boxed`` is a list around the ObjectRef: a bare one would be resolved in the call."""
        self._windows[split] = (opened, boxed)

    def get(self, split: str) -> tuple[dict[str, Any], list[Any]] | None:
        return self._windows.get(split)


class WindowStore:
    """The driver's side. Keep the object as long as environments may be created: the driver owns the arrays.

    Args:
        run_id: The run.
        resumed_from: Iteration of the checkpoint that the attempt goes on from; None begins a run. The store tells
            it, because RLlib builds an algorithm before it restores its state, and calls nobody after that.
    """

    def __init__(self, run_id: str, resumed_from: int | None = None) -> None:
        self.name = store_name(run_id)
        actor: Any = _WindowStore  # ray.remote hides the class behind an untyped handle
        # On the driver's node, which owns the arrays: with another node the run would lose its windows.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._actor = actor.options(
            name=self.name, namespace=NAMESPACE, get_if_exists=True, scheduling_strategy=here
        ).remote()
        self._references: dict[str, Any] = {}
        ray.get(self._actor.begin.remote(resumed_from))

    def put(self, window: Window) -> Window:
        """Make this the current window of its split.

        Returns:
            The window as it lies in the memory that the node's processes share: who keeps that one keeps no copy.
        """
        reference = ray.put(window.data)
        ray.get(self._actor.put.remote(window.opened.split, window.opened.model_dump(), [reference]))
        self._references[window.opened.split] = reference
        return Window(ray.get(reference), window.opened)

    def close(self) -> None:
        """Stop the actor and let go of the arrays."""
        ray.kill(self._actor)
        self._references.clear()


def require_store(name: str) -> Any:
    """The actor of that name.

    Raises:
        WindowError: no window is open under it in this Ray session; says how to open one.
    """
    try:
        return ray.get_actor(name, namespace=NAMESPACE)
    except ValueError as error:
        run_id = name.removeprefix("windows-")
        raise WindowError(
            f"run {run_id}: its windows are not open in this Ray session; open them before Algorithm.from_checkpoint: "
            "`with millrace.open_checkpoint(PATH, log=ADDRESS): algorithm = Algorithm.from_checkpoint(PATH)`"
        ) from error


def resumed_from(name: str) -> int | None:
    """Iteration of the checkpoint that this attempt goes on from, or None.

    Raises:
        WindowError: the store is not open.
    """
    iteration: int | None = ray.get(require_store(name).resumed_from.remote())
    return iteration


def current_window(name: str, split: Split) -> tuple[dict[str, Any], MarketData]:
    """The current window of a split, with its bars shared in memory, not copied.

    Returns:
        The fields of its ``WindowOpened``, and its bars.

    Raises:
        WindowError: the store or the split's window is not open.
    """
    found = ray.get(require_store(name).get.remote(split))
    if found is None:
        raise WindowError(f"window store {name}: no {split} window is open; put one before environments are created")
    opened, boxed = found
    return opened, ray.get(boxed[0])
