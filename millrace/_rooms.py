"""Our packages have short names at the top level: make sure that nobody else's answers to them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOMS = ("schemas", "eventlog", "producers", "env", "trainer", "consumers", "analytics", "local")


def check_rooms() -> None:
    """Check that each room comes from the folder that holds ``millrace`` itself.

    Raises:
        ImportError: another file shadows a room; names it and says what to do.
    """
    root = Path(__file__).resolve().parent.parent
    for room in ROOMS:
        spec = importlib.util.find_spec(room)
        origin = Path(spec.origin).resolve() if spec and spec.origin else None
        if origin != root / room / "__init__.py":
            found = origin or "nothing that can be imported"
            raise ImportError(
                f"millrace needs its own package {room!r} from {root / room}, but Python finds {found}; rename or move "
                f"that file, or start Python from another directory"
            )
