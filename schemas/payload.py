"""What all payloads have in common."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

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

    @property
    def rows(self) -> int:
        """Rows that this payload declares; 0 where it has no columns."""
        return len(getattr(self, self.COLUMNS[0])) if self.COLUMNS else 0
