"""compose.yaml as a text: what an engine would refuse, and what it would only show at run time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main
from deploy_compose import COMPOSE, COMPOSE_FILE, OURS, ROOT, SERVICES, dependencies, in_order, size, stays_up

from millrace.cli import app
from millrace.settings import ENVIRONMENT_PREFIX, load_settings

every_service = pytest.mark.parametrize("name", SERVICES)
every_service_of_ours = pytest.mark.parametrize("name", OURS)


@pytest.fixture(autouse=True)
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in [name for name in os.environ if name.upper().startswith(ENVIRONMENT_PREFIX)]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)


def test_it_is_a_compose_file() -> None:
    command = [str(Path(sys.executable).with_name("check-jsonschema")), "--builtin-schema", "vendor.compose-spec"]
    checked = subprocess.run([*command, str(COMPOSE_FILE)], capture_output=True, text=True, check=False, timeout=60)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_it_holds_the_parts_of_the_flow() -> None:
    assert set(SERVICES) >= {"kafka", "topics", "clickhouse", "migrations", "producer", "trainer", "consumer"}
    assert set(in_order()) == set(SERVICES)
    # What a plain `docker compose up` leaves out.
    assert {name for name in SERVICES if "profiles" in SERVICES[name]} == {"kafka-ui"}


@every_service
def test_what_it_waits_for_can_come(name: str) -> None:
    for on, condition in dependencies(name).items():
        assert on in SERVICES
        assert "profiles" not in SERVICES[on]
        if condition == "service_healthy":
            assert "healthcheck" in SERVICES[on]
        if condition == "service_completed_successfully":
            assert not stays_up(on), f"{on} never ends"
            # Restarted after a failure it may still come; restarted after a success it never ends.
            assert SERVICES[on]["restart"] == "no" or SERVICES[on]["restart"].startswith("on-failure:")


@every_service
def test_an_engine_that_others_wait_for_has_a_patient_health_check(name: str) -> None:
    if name in OURS or "profiles" in SERVICES[name]:
        return
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] == "CMD"
    # The name others use, not the loopback, where clickhouse-server's first start already answers.
    assert any(re.search(rf"\b{name}:\d+", word) for word in check["test"])
    interval, start = (int(check[key].removesuffix("s")) for key in ("interval", "start_period"))
    assert start + interval * check["retries"] >= 120


@every_service
def test_its_volumes_are_declared(name: str) -> None:
    for volume in SERVICES[name].get("volumes", []):
        source, target, *mode = volume.split(":")
        assert source in COMPOSE["volumes"]
        assert target.startswith("/")
        # One writes the secrets, the others read them.
        assert source != "secrets" or (mode == ["ro"]) == (name != "secrets")
    assert set(SERVICES[name].get("secrets", [])) <= set(COMPOSE.get("secrets", {}))


def test_no_volume_is_declared_in_vain() -> None:
    used = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert used == set(COMPOSE["volumes"])


@every_service
def test_its_image_is_pinned(name: str) -> None:
    image, _, tag = SERVICES[name]["image"].rpartition(":")
    assert image
    assert re.search(r"\d+\.\d+", tag), f"{name}: {tag}"


def test_kafka_is_the_version_that_the_tests_run() -> None:
    pom = (ROOT / "local" / "kafka_pom.xml").read_text(encoding="utf-8")
    [version] = re.findall(r"<artifactId>kafka_[\d.]+</artifactId>\s*<version>([\d.]+)</version>", pom)
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{version}"


def test_our_images_carry_our_version() -> None:
    from millrace import __version__

    assert {service["image"].rpartition(":")[2] for service in OURS.values()} == {__version__}
    assert {service["build"]["target"] for service in OURS.values()} == {"slim", "trainer"}
    assert [name for name in OURS if OURS[name]["build"]["target"] == "trainer"] == ["trainer"]


@every_service
def test_its_ports_are_on_the_loopback(name: str) -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))
    assert SERVICES[name].get("network_mode", "none") == "none"


@every_service
def test_it_is_bounded_and_stops_in_order(name: str) -> None:
    service = SERVICES[name]
    limits = service["deploy"]["resources"]["limits"]
    assert size(limits["memory"]) > 0
    # An engine refuses to start a container that may use more cores than the machine has.
    assert 0 < float(limits["cpus"]) <= 2
    assert service["init"] is True
    assert "no-new-privileges:true" in service["security_opt"]
    assert "privileged" not in service
    if "profiles" not in service:
        assert int(service["stop_grace_period"].removesuffix("s")) >= 30


@every_service_of_ours
def test_ours_have_no_rights_and_write_to_their_volumes_alone(name: str) -> None:
    service = OURS[name]
    assert service["user"] == "10001:10001"
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["read_only"] is True


@every_service_of_ours
def test_its_environment_is_accepted_by_the_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in OURS[name].get("environment", {}).items():
        assert variable.startswith(ENVIRONMENT_PREFIX)
        # YAML's own numbers and booleans reach a container as texts that differ between engines.
        assert isinstance(value, str)
        monkeypatch.setenv(variable, value)
    settings = load_settings()
    if name != "secrets":
        server, port = settings.log.bootstrap_servers.split(":")
        assert f"INTERNAL://{server}:{port}" in SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
        told = SERVICES["clickhouse"]["environment"]
        assert settings.clickhouse.url == "http://clickhouse:8123"
        assert settings.clickhouse.user == told["CLICKHOUSE_USER"]
        assert settings.clickhouse.database == told["CLICKHOUSE_DB"]
        assert settings.clickhouse.password_file == told["CLICKHOUSE_PASSWORD_FILE"] == OURS["secrets"]["command"][-1]


def test_shared_memory_holds_the_object_store_of_ray() -> None:
    trainer = OURS["trainer"]
    megabytes = int(trainer["environment"]["MILLRACE__TRAIN__OBJECT_STORE_MB"])
    assert megabytes * 1_000_000 < size(trainer["shm_size"]) < size(trainer["deploy"]["resources"]["limits"]["memory"])


@every_service_of_ours
def test_its_command_exists(name: str) -> None:
    program, *words = OURS[name]["command"]
    if program == "python":
        assert words[:2] == ["-m", "local.make_secret"]
        return
    assert program == "millrace"
    command: Any = typer.main.get_command(app)
    context = command.make_context("millrace", words, resilient_parsing=True)
    while words and hasattr(command, "get_command"):
        command = command.get_command(context, words.pop(0))
        assert command is not None, f"{name}: no such command"
    # Parses options and their values, and runs nothing.
    command.make_context(command.name, words)


def test_it_holds_no_secret() -> None:
    text = COMPOSE_FILE.read_text(encoding="utf-8")
    for name, service in SERVICES.items():
        for variable in service.get("environment", {}):
            if re.search(r"PASSWORD|SECRET|TOKEN|JAAS|CREDENTIAL", variable):
                assert variable.endswith("_FILE"), f"{name}: {variable}"
    # Nothing is taken from the environment of who starts it, where it might be forgotten or be shown.
    assert "${" not in text


def test_kafka_has_all_the_settings_that_its_image_would_otherwise_give() -> None:
    told = SERVICES["kafka"]["environment"]
    names = re.findall(r"(\w+)://", told["KAFKA_LISTENERS"])
    assert set(names) == {pair.split(":")[0] for pair in told["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(",")}
    assert set(re.findall(r"(\w+)://", told["KAFKA_ADVERTISED_LISTENERS"])) == set(names) - {"CONTROLLER"}
    assert told["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"
    assert told["KAFKA_LOG_DIRS"] in [volume.split(":")[1] for volume in SERVICES["kafka"]["volumes"]]
    factors = [value for variable, value in told.items() if variable.endswith(("REPLICATION_FACTOR", "MIN_ISR"))]
    assert factors == ["1"] * 5
    # What the host port forwards to is what a client on the host is told to come back to.
    [port] = SERVICES["kafka"]["ports"]
    outside, inside = re.findall(r":(\d+)", port)
    assert f"HOST://127.0.0.1:{outside}" in told["KAFKA_ADVERTISED_LISTENERS"]
    assert f"HOST://kafka:{inside}" in told["KAFKA_LISTENERS"]
