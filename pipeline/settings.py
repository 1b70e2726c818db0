"""The base of all classes of settings: frozen, unknown keys refused, numbers finite and no booleans."""

from typing import Any, Final, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticKnownError

MAX_COUNT: Final = 10**9
"""No count in the settings is larger: sizes of arrays, which are products of counts, fit into 64 bits."""


class Settings(BaseModel):
    """A section of the settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false for numbers: Python counts them as 1 and 0."""
        field = cls.model_fields.get(info.field_name or "")
        values = value if isinstance(value, list | tuple) else [value]
        if field is not None and any(isinstance(each, bool) for each in values):
            if _holds(int, field.annotation):
                raise PydanticKnownError("int_type")
            if _holds(float, field.annotation):
                raise PydanticKnownError("float_type")
        return value


def _holds(number: type, annotation: Any) -> bool:
    """Whether `annotation` is, or is composed of, `number`: int and `tuple[Annotated[int, …], …]` hold int."""
    return annotation is number or any(_holds(number, part) for part in get_args(annotation))
