"""What several commands share: options, and printing JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="TOML file; none: millrace.toml in the working directory, if any.")
]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="section.name=value, over file and environment.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON; progress goes to standard error.")]


def print_json(value: Any) -> None:
    """Print a command's result for programs."""
    print(json.dumps(value, indent=2, default=str))  # noqa: T201 - a command's result
