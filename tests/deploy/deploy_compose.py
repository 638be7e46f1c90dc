"""compose.yaml and the Dockerfile as plain data."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent.parent
COMPOSE_FILE = ROOT / "compose.yaml"
DOCKERFILE = ROOT / "Dockerfile"

COMPOSE: dict[str, Any] = yaml.safe_load(COMPOSE_FILE.read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}

_UNITS = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30}


def dependencies(name: str) -> dict[str, str]:
    """Service → condition."""
    return {on: how["condition"] for on, how in SERVICES[name].get("depends_on", {}).items()}


def in_order() -> list[str]:
    """All services, each behind those that it waits for."""
    done: list[str] = []

    def add(name: str, waiting: tuple[str, ...]) -> None:
        assert name not in waiting, f"a circle of depends_on: {' → '.join((*waiting, name))}"
        for on in dependencies(name):
            add(on, (*waiting, name))
        if name not in done:
            done.append(name)

    for name in SERVICES:
        add(name, ())
    return done


def stays_up(name: str) -> bool:
    """Whether a service is meant to run until it is stopped; the others do one thing and end."""
    return bool(SERVICES[name].get("restart") == "unless-stopped")


def size(text: str) -> int:
    """Bytes of ``512M`` or ``1gb``."""
    found = re.fullmatch(r"(\d+)([bkmg]?)b?", text.lower())
    assert found, text
    return int(found[1]) * _UNITS[found[2]]


def instructions(stage: str) -> list[tuple[str, str]]:
    """The Dockerfile's instructions of one stage, in order, with those of the stages that it is built from."""
    text = re.sub(r"\\\n\s*", "", DOCKERFILE.read_text(encoding="utf-8"))
    stages: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] = []
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            current = stages[name] = list(stages.get(base, [("FROM", base)]))
        else:
            current.append((word, rest))
    return stages[stage]
