"""Fixtures of the consumers' tests; they live in a module so that the tests of ``analytics`` have them too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

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
