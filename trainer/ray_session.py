"""A quiet Ray session: local by default, or the cluster that ``RAY_ADDRESS`` names."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import ray

# Read by Ray at import or start; set for a user who has not said otherwise.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


def start_ray(num_cpus: int, object_store_mb: int) -> bool:
    """Start a local Ray, or join the cluster of ``RAY_ADDRESS``. Does nothing where one is running.

    Args:
        num_cpus: Logical CPUs; on one machine more than there are cores is fine for small runners.
        object_store_mb: Shared memory for windows and samples, in MB.

    Returns:
        Whether it was started: then ``ray.shutdown()`` is the caller's, too.

    Raises:
        KeyboardInterrupt: SIGTERM came meanwhile; the program's own handler has been called.
    """
    if ray.is_initialized():
        return False
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    # RLlib registers its wrapper of the environment again for each group of runners, and gymnasium warns of it.
    warnings.filterwarnings("ignore", ".*Overriding environment rllib-single-agent-env-v0", UserWarning)
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    with _native_stderr_held_back(), _sigterm_kept():
        if os.environ.get("RAY_ADDRESS"):
            ray.init(**quiet)
        else:
            # Without an address Ray would join any cluster that runs on this machine.
            ray.init(
                address="local",
                num_cpus=num_cpus,
                include_dashboard=False,
                object_store_memory=object_store_mb * 1_000_000,
                **quiet,
            )
    return True


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keep the program's handler of SIGTERM: ``ray.init()`` replaces it for good by one that exits at once.

    Raises:
        KeyboardInterrupt: SIGTERM came while Ray's was in place.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Only the main thread can set handlers, and Ray knows that, too.
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as error:
        signal.signal(signal.SIGTERM, before)
        signal.raise_signal(signal.SIGTERM)
        raise KeyboardInterrupt from error
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _native_stderr_held_back() -> Iterator[None]:
    """Hold back what Ray's C++ core writes to stderr, and show it only where the start fails.

    Being told to be quiet it announces that it will be.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except Exception:
            held.seek(0)
            os.write(saved, held.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)
