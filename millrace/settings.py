"""All settings in one place: TOML file < environment (``MILLRACE__…``) < ``--set a.b=c``."""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from env.settings import EnvSettings
from eventlog.kafka_security import KafkaSecurity
from schemas.errors import SettingsError
from schemas.topics import DEFAULT_PREFIX
from trainer.settings import AlgorithmSettings, DataSettings, OutboxSettings, TrainSettings

ENVIRONMENT_PREFIX = "MILLRACE__"
DEFAULT_FILE = Path("millrace.toml")

# What the market model leaves open and a learner needs. The scale: a fill costs about 0.001, and the noise of a fresh
# network must be small beside it, or the agent turns its position at every bar. The window: each bar more is five
# inputs more to fit noise with, and ten years of daily bars bear few. The length: 16 environments report a mean return
# after 2,000 steps.
_TRAINING_DEFAULTS = {"env": {"reward_scale": 500.0, "window": 8, "episode_length": 128}}


def refuse_mask(secret: SecretStr, variable: str) -> SecretStr:
    """The secret, unless it is the asterisks that stand for one.

    Raises:
        ValueError: it is; pydantic makes a settings error of it.
    """
    if str(secret) == secret.get_secret_value() != "":
        raise ValueError(
            "expected the password, got the asterisks that `millrace config` prints in its place; delete that line "
            f"and set {ENVIRONMENT_PREFIX}{variable}"
        )
    return secret


class LocalSettings(BaseModel):
    """The engines on this machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    state_dir: Path = Field(Path(".millrace"), description="Where log, store, outboxes and checkpoints lie.")
    kafka_jars: str = Field("", description="Where the local broker's jars lie; none: the user's cache directory.")
    kafka_port: int = Field(0, ge=0, le=65_535, description="Loopback port of the local broker; 0: as store_port.")
    store_port: int = Field(
        0, ge=0, le=65_535, description="Loopback port of the store; 0: the last one, or a free one."
    )


class LogSettings(BaseModel):
    """The event log, and how a Kafka cluster lets us in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: Literal["sqlite", "kafka"] = Field("sqlite", description="Engine of the log in local.state_dir.")
    bootstrap_servers: str = Field("", description="HOST:PORT[,HOST:PORT…] of a Kafka cluster; none: the local log.")
    topic_prefix: str = Field(DEFAULT_PREFIX, pattern=r"^[0-9A-Za-z_-]+$", description="First part of topic names.")
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="Kafka's name of the protocol."
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="How a user proves a password."
    )
    sasl_username: str = Field("", description="User of the cluster.")
    sasl_password: SecretStr = Field(SecretStr(""), description="Its password; better by environment or file.")
    sasl_password_file: str = Field("", description="File that holds it instead.")
    ssl_ca_file: str = Field("", description="PEM of the authorities to trust; none: the system's.")

    @field_validator("sasl_password")
    @classmethod
    def _is_not_masked(cls, password: SecretStr) -> SecretStr:
        return refuse_mask(password, "LOG__SASL_PASSWORD")

    @property
    def security(self) -> KafkaSecurity:
        """The same, as the engine takes it."""
        return KafkaSecurity(
            protocol=self.security_protocol,
            mechanism=self.sasl_mechanism,
            username=self.sasl_username,
            password=self.sasl_password,
            password_file=Path(self.sasl_password_file) if self.sasl_password_file else None,
            ca_file=Path(self.ssl_ca_file) if self.ssl_ca_file else None,
        )


class ClickHouseSettings(BaseModel):
    """Where events are stored and queried."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field("", description="http://HOST:PORT of a ClickHouse server; none: the store in local.state_dir.")
    user: str = Field("millrace", description="User of that server.")
    password: SecretStr = Field(SecretStr(""), description="Its password; better by environment than in a file.")
    database: str = Field("millrace", pattern=r"^\w+$", description="Database that holds our tables.")
    password_file: str = Field("", description="File that holds it instead.")

    @field_validator("password")
    @classmethod
    def _is_not_masked(cls, password: SecretStr) -> SecretStr:
        return refuse_mask(password, "CLICKHOUSE__PASSWORD")


class RaySettings(BaseModel):
    """Where training runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str = Field(
        "", description="HOST:PORT of a Ray cluster, or auto; none: that of RAY_ADDRESS, or a Ray of our own."
    )


class FeedSettings(BaseModel):
    """The bars to replay."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str = Field(
        "", description="CSV with Ticker,Date,Open,High,Low,Close,Volume[,Adj Close]; none: bundled stocks."
    )
    on_bad_row: Literal["error", "skip"] = Field("error", description="What a bad row does: stop, or be counted.")
    speed: float | None = Field(None, gt=0, description="Market time over wall time; none: as fast as it goes.")


class Settings(BaseModel):
    """Everything that can be set. ``millrace config`` prints it resolved."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    local: LocalSettings = LocalSettings()
    log: LogSettings = LogSettings()
    clickhouse: ClickHouseSettings = ClickHouseSettings()
    feed: FeedSettings = FeedSettings()
    data: DataSettings = DataSettings()
    env: EnvSettings = EnvSettings()
    algorithm: AlgorithmSettings = AlgorithmSettings()
    train: TrainSettings = TrainSettings()
    ray: RaySettings = RaySettings()
    outbox: OutboxSettings | None = Field(None, description="None: below local.state_dir, with its defaults.")

    @property
    def state_dir(self) -> Path:
        """``local.state_dir``, absolute."""
        return self.local.state_dir.expanduser().absolute()

    @property
    def outbox_settings(self) -> OutboxSettings:
        """The outbox, below the state directory unless it is set."""
        return self.outbox or OutboxSettings(directory=self.state_dir / "outbox")

    def masked(self) -> dict[str, Any]:
        """All settings as plain data, secrets as asterisks."""
        return self.model_dump(mode="json")


def load_settings(file: Path | None = None, overrides: Sequence[str] = ()) -> Settings:
    """Read the settings: file, then environment, then overrides; the later one wins, setting by setting.

    Args:
        file: A TOML file; none: ``millrace.toml`` in the working directory, where there is one.
        overrides: Texts ``section.name=value``; the value is a TOML value, or else plain text.

    Raises:
        SettingsError: the file is missing or no TOML; a name is unknown (the nearest known one is suggested); a value
            is out of range.
    """
    merged: dict[str, Any] = {}
    for name, value in (*_flatten(_TRAINING_DEFAULTS), *_flatten(_read_file(file))):
        _set(merged, name, value)
    for name, value in _environment(os.environ):
        _set(merged, name, value)
    for override in overrides:
        dotted, equals, text = override.partition("=")
        if not equals or not dotted.strip():
            raise SettingsError(f"--set {override!r}: expected section.name=value, such as train.seed=7")
        path = tuple(dotted.strip().split("."))
        _set(merged, path, _value(path, text.strip()))
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise SettingsError("; ".join(_explain(problem) for problem in error.errors()[:3])) from error


def _read_file(file: Path | None) -> dict[str, Any]:
    if file is None and not DEFAULT_FILE.exists():
        return {}
    path = file or DEFAULT_FILE
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SettingsError(f"settings file {path}: expected a TOML file, there is none") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"settings file {path}: expected TOML: {error}") from error


def _environment(variables: Mapping[str, str]) -> Iterator[tuple[tuple[str, ...], Any]]:
    for variable, text in sorted(variables.items()):
        if variable.upper().startswith(ENVIRONMENT_PREFIX):
            path = tuple(variable[len(ENVIRONMENT_PREFIX) :].lower().split("__"))
            yield path, _value(path, text)


def _flatten(table: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping) and len(above) < 2:
            yield from _flatten(value, (*above, name))
        else:
            yield (*above, name), value


def _set(target: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    *sections, last = path
    for name in sections:
        target = target.setdefault(name, {})
        if not isinstance(target, dict):
            raise SettingsError(f"setting {'.'.join(path)!r}: {name!r} is a value already, expected a table")
    target[last] = value


def _value(path: Sequence[str], text: str) -> Any:
    """A TOML value where the text is one, else the text: ``7``, ``true``, ``["AAPL"]``, but also ``PPO``.

    A setting that is a text takes it as it is: a password may be ``0123``.
    """
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, str) or not _is_text(path) else text


def _is_text(path: Sequence[str]) -> bool:
    *sections, name = path
    model: type[BaseModel] = Settings
    for section in sections:
        if section not in model.model_fields:
            return False
        model = _model_at(model, section)
    field = model.model_fields.get(name)
    return field is not None and field.annotation in (str, SecretStr)


def _explain(problem: Any) -> str:
    path = [str(part) for part in problem["loc"]]
    if problem["type"] != "extra_forbidden":
        shown = "" if any("password" in part for part in path) else f", got {problem['input']!r}"
        hint = '; write a list as ["A", "B"]' if problem["type"] == "tuple_type" else ""
        return f"setting {'.'.join(path)}: {problem['msg']}{shown}{hint}"
    known = _names_at(path[:-1])
    near = difflib.get_close_matches(path[-1], known, n=1)
    hint = f"did you mean {'.'.join([*path[:-1], near[0]])}?" if near else f"known here: {', '.join(known)}"
    return f"unknown setting {'.'.join(path)}; {hint}"


def _names_at(path: list[str]) -> list[str]:
    model: type[BaseModel] = Settings
    for name in path:
        model = _model_at(model, name)
    return list(model.model_fields)


def _model_at(model: type[BaseModel], name: str) -> type[BaseModel]:
    annotation = model.model_fields[name].annotation
    return next((part for part in (annotation, *get_args(annotation)) if _is_model(part)), model)


def _is_model(part: Any) -> bool:
    return isinstance(part, type) and issubclass(part, BaseModel)
