"""What the tests of the Kafka engine share: a broker to maltreat, and a certificate authority for one test run."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from kafka import KafkaAdminClient

from local.kafka_broker import BrokerAddress, BrokerSecurity, start_broker, stop_broker


@dataclass
class Broker:
    """A broker of a test's own, to be frozen, killed and started again."""

    state_dir: Path
    settings: dict[str, str] = field(default_factory=dict)
    security: BrokerSecurity | None = None
    address: BrokerAddress | None = None

    def start(self) -> BrokerAddress:
        self.address = start_broker(self.state_dir, settings=self.settings, security=self.security)
        return self.address

    @property
    def log_address(self) -> str:
        assert self.address is not None
        return self.address.log_address

    def signal(self, number: signal.Signals) -> None:
        assert self.address is not None
        os.kill(self.address.pid, number)

    def freeze(self) -> None:
        self.signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.signal(signal.SIGCONT)

    def kill(self) -> None:
        """kill -9, and wait for the end."""
        self.signal(signal.SIGKILL)
        assert self.address is not None
        deadline = time.monotonic() + 10
        while psutil.pid_exists(self.address.pid):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def is_alive(self) -> bool:
        return self.address is not None and psutil.pid_exists(self.address.pid)

    def stop(self) -> None:
        stop_broker(self.state_dir)

    def admin(self) -> Any:
        assert self.address is not None
        return KafkaAdminClient(bootstrap_servers=f"{self.address.host}:{self.address.port}")

    def close(self) -> None:
        if self.is_alive():
            self.thaw()
        self.stop()


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """A broker's key and certificate for 127.0.0.1 in one PEM, and the authority that signed it."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    new = ["req", "-newkey", "rsa:2048", "-nodes"]
    openssl(*new, "-x509", "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=test authority")
    openssl(*new, "-keyout", "broker.key", "-out", "broker.csr", "-subj", "/CN=127.0.0.1")
    (directory / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    signed = ["-in", "broker.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names"]
    openssl("x509", "-req", *signed, "-out", "broker.crt", "-days", "2")
    both = directory / "broker.pem"
    both.write_text((directory / "broker.key").read_text() + (directory / "broker.crt").read_text())
    return both, directory / "ca.pem"
