"""Functions of the user's, named in a setting as ``package.module:function``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from schemas.errors import SettingsError


def load_function(path: str, setting: str) -> Callable[..., Any]:
    """Import a function by ``package.module:function``; the module must be importable wherever the environment runs.

    Args:
        path: Where it is.
        setting: Name of the setting that says so, for errors.

    Raises:
        SettingsError: The module cannot be imported, or has no such function.
    """
    module, _, name = path.partition(":")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise SettingsError(
            f"setting {setting!r}: expected a module on the Python path in {path!r}, got {error}; install it or add its"
            " folder to PYTHONPATH"
        ) from error
    function = getattr(found, name, None)
    if not callable(function):
        raise SettingsError(
            f"setting {setting!r}: expected a function {name!r} in module {module!r}, got {function!r}; define it there"
        )
    return function  # type: ignore[no-any-return]
