"""README.md stays true: its commands parse, its settings exist, its SQL runs, its Python imports."""

from __future__ import annotations

import ast
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import typer.main
from pydantic import SecretStr

import millrace
from analytics.connect import connect
from consumers.sink import Sink
from local.store import start_store, stop_store
from millrace.cli import app
from millrace.settings import load_settings

ROOT = Path(__file__).resolve().parent.parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", *sorted((ROOT / "docs").glob("*.md"))]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    lines = [line.strip() for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True) for line in lines if line.startswith(".venv/bin/millrace")]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_each_command_and_its_options_exist(words: list[str]) -> None:
    command = typer.main.get_command(app)
    context = command.make_context("millrace", words[1:], resilient_parsing=True)
    names = [word for word in words[1:] if not word.startswith("-")]
    for name in names:
        found = getattr(command, "get_command", lambda *_: None)(context, name)
        if found is None:
            break
        command = found
    assert command.name != "millrace", f"{words}: no such command"
    known = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words[2:] if word.startswith("--")} <= known
    load_settings(None, [value for option, value in pairwise(words) if option == "--set"])


def test_each_make_target_exists() -> None:
    named = set(re.findall(r"\bmake ([a-z-]+)", README))
    assert named
    for target in named:
        assert re.search(rf"^{target}:", MAKEFILE, flags=re.MULTILINE), f"make {target}: no such target"


@pytest.mark.parametrize("text", blocks("toml"))
def test_the_toml_is_accepted(text: str, tmp_path: Path) -> None:
    file = tmp_path / "millrace.toml"
    file.write_text(text)
    settings = load_settings(file)
    assert settings.algorithm.tables["training"]


@pytest.mark.parametrize("text", blocks("python"))
def test_the_python_imports_what_there_is(text: str) -> None:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module == "millrace":
            assert {alias.name for alias in node.names} <= set(millrace.__all__)


def test_the_sql_runs_on_our_views(tmp_path: Path) -> None:
    queries = [words[2] for words in commands() if words[1] == "query"]
    views = {
        name
        for row in re.findall(r"^\| (`.*?`) \|", README, flags=re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
    address = start_store(tmp_path / "state")
    password: SecretStr = address.password
    url = f"http://{address.user}@{address.host}:{address.port}/{address.database}"
    try:
        sink = Sink.connect(url, password.get_secret_value())
        sink.migrate()
        sink.close()
        with connect(url, password.get_secret_value()) as client:
            assert queries
            for sql in (*queries, *(f"SELECT * FROM {view}" for view in sorted(views))):
                client.query(sql)
    finally:
        stop_store(tmp_path / "state")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_paths_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    # A link is read from where its document lies, a path in a sentence from the root.
    targets = {document.parent / link for link in re.findall(r"\]\(([^)#:]+)(?:#[\w-]+)?\)", text)}
    targets |= {
        ROOT / path for path in re.findall(r"`((?:examples|schemas|producers|benchmarks|docs)/[\w./-]+)`", text)
    }
    for target in targets:
        assert target.exists(), f"{document.name} names {target}"
