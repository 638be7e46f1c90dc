"""How a Kafka cluster lets us in: protocol, mechanism, user, password, authority.

Secrets reach the processes that we start by environment variables or files, never by command lines::

    MILLRACE__LOG__SECURITY_PROTOCOL=SASL_SSL
    MILLRACE__LOG__SASL_MECHANISM=SCRAM-SHA-512
    MILLRACE__LOG__SASL_USERNAME=millrace
    MILLRACE__LOG__SASL_PASSWORD_FILE=/run/secrets/kafka
    MILLRACE__LOG__SSL_CA_FILE=/etc/ssl/kafka-ca.pem
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, SecretStr, ValidationError

from schemas.errors import SettingsError

_PREFIX: Final = "MILLRACE__LOG__"

_VARIABLES: Final = {
    "protocol": f"{_PREFIX}SECURITY_PROTOCOL",
    "mechanism": f"{_PREFIX}SASL_MECHANISM",
    "username": f"{_PREFIX}SASL_USERNAME",
    "password": f"{_PREFIX}SASL_PASSWORD",
    "password_file": f"{_PREFIX}SASL_PASSWORD_FILE",
    "ca_file": f"{_PREFIX}SSL_CA_FILE",
}


class KafkaSecurity(BaseModel):
    """What a client needs beside the address. The default is a plain connection.

    Attributes:
        protocol: Kafka's name of the protocol.
        mechanism: SASL mechanism, for the SASL protocols.
        username: SASL user.
        password: Its password; masked when printed.
        password_file: File that holds it instead.
        ca_file: PEM of the authorities to trust; by default the system's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    username: str = ""
    password: SecretStr = SecretStr("")
    password_file: Path | None = None
    ca_file: Path | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> KafkaSecurity:
        """The security that ``MILLRACE__LOG__…`` variables describe.

        Raises:
            SettingsError: a variable has a value that is none of those expected.
        """
        given = os.environ if environment is None else environment
        values = {field: given[name] for field, name in _VARIABLES.items() if given.get(name)}
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            name = _VARIABLES.get(str(first["loc"][0]), str(first["loc"][0]))
            # Without the value: it may be a password in the wrong place.
            raise SettingsError(f"environment variable {name}: {first['msg']}; correct it") from error

    def to_environment(self) -> dict[str, str]:
        """The variables from which another process makes the same. They hold the password in clear."""
        values = {**self.model_dump(exclude_defaults=True), "password": self.password.get_secret_value()}
        return {_VARIABLES[field]: str(value) for field, value in values.items() if value}

    def client_options(self) -> dict[str, Any]:
        """Options for kafka-python's clients, the password among them: not to be printed.

        Raises:
            SettingsError: user or password is missing, or a file cannot be read.
        """
        options: dict[str, Any] = {"security_protocol": self.protocol}
        if self.protocol.endswith("SSL") and self.ca_file is not None:
            _read(self.ca_file, "log.ssl_ca_file")
            options["ssl_cafile"] = str(self.ca_file)
        if self.protocol.startswith("SASL"):
            password = self._password()
            if not self.username or not password:
                missing = "log.sasl_password or log.sasl_password_file" if self.username else "log.sasl_username"
                raise SettingsError(f"{missing}: expected a value with log.security_protocol {self.protocol}, got none")
            options |= {
                "sasl_mechanism": self.mechanism,
                "sasl_plain_username": self.username,
                "sasl_plain_password": password,
            }
        return options

    def _password(self) -> str:
        if self.password_file is None:
            return self.password.get_secret_value()
        if self.password.get_secret_value():
            raise SettingsError(
                "log.sasl_password and log.sasl_password_file: expected one of them, got both; remove one"
            )
        return _read(self.password_file, "log.sasl_password_file").strip()


def _read(path: Path, setting: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not text"
        raise SettingsError(
            f"{setting} {str(path)!r}: expected a readable text file: {why}; correct the path"
        ) from error
