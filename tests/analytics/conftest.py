"""The fixtures of the consumers' tests: a real store, a real log, a writer of events."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "consumers"))

from consumers_fixtures import (
    database,
    drain,
    fresh,
    log,
    password,
    reader,
    sink,
    store,
    url,
    writer,
)

__all__ = ["database", "drain", "fresh", "log", "password", "reader", "sink", "store", "url", "writer"]
