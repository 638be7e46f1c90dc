"""What all payloads have in common."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, model_validator

Split = Literal["train", "validation", "test", "live"]


class Payload(BaseModel):
    """Base of all payloads. Fields unknown to this version (a newer minor) are kept, not refused."""

    model_config = ConfigDict(frozen=True, extra="allow", ser_json_inf_nan="null")

    EVENT_TYPE: ClassVar[str]
    TOPIC: ClassVar[str]
    COLUMNS: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="after")
    def _columns_have_one_length(self) -> Self:
        lengths = {name: len(getattr(self, name)) for name in self.COLUMNS}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"{self.EVENT_TYPE}: columns of different lengths {lengths}")
        return self

    @classmethod
    def write(cls, **fields: Any) -> Written:
        """An event of an episode as JSON at once, of values that this program has computed: none is looked at.

        For our own data alone. What comes from outside is validated by the model itself, and so is every record that is
        read from the log.

        Args:
            fields: The model's fields. Columns are lists or C-contiguous numpy arrays, texts only in lists.

        Raises:
            ValueError: columns of different lengths, or fields missing or unknown.
        """
        names, defaults = _fields(cls)
        values = {**defaults, **fields}
        if values.keys() != names:
            odd = sorted(values.keys() ^ names)
            raise ValueError(f"{cls.EVENT_TYPE}: expected the model's fields, got {odd} missing or beside them")
        lengths = {len(values[name]) for name in cls.COLUMNS} or {0}
        if len(lengths) > 1:
            raise ValueError(f"{cls.EVENT_TYPE}: columns of different lengths {sorted(lengths)}")
        (rows,) = lengths
        return Written(cls, values["episode_id"], rows, orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY))

    @property
    def model(self) -> type[Payload]:
        """What it is; a written payload says the same."""
        return type(self)

    @property
    def rows(self) -> int:
        """Rows that this payload declares; 0 where it has no columns."""
        return len(getattr(self, self.COLUMNS[0])) if self.COLUMNS else 0


@dataclass(frozen=True, slots=True)
class Written:
    """A payload as the JSON that its record will hold, with what else the record needs of it.

    Made while the columns are still in the processor's cache, and a fraction of their size.
    """

    model: type[Payload]
    episode_id: str
    rows: int
    json: bytes

    def read(self) -> Payload:
        """The payload itself.

        Raises:
            pydantic.ValidationError: it is none.
        """
        return self.model.model_validate_json(self.json, strict=True)


@dataclass(frozen=True, slots=True)
class Deferred:
    """Events that are yet to be made: who sends them on makes them, so that a process that is in a hurry need not.

    Attributes:
        maker: Name of what makes them (``eventlog.event_makers``): a function that takes ``value`` and returns the
            payloads, the same each time.
        models: What they will be, in order; each at most once.
        value: What they are made of.
    """

    maker: str
    models: tuple[type[Payload], ...]
    value: bytes


@cache
def _fields(model: type[Payload]) -> tuple[frozenset[str], dict[str, Any]]:
    """Names of all fields, and the defaults of those that have one."""
    fields = model.model_fields
    return frozenset(fields), {name: field.default for name, field in fields.items() if not field.is_required()}
