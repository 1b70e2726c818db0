"""The base of all classes of settings, and how their errors are put into words.

Settings are frozen. Unknown keys are refused, and numbers that are infinite or booleans.
"""

import math
from collections.abc import Mapping
from typing import Any, Final, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import ErrorDetails, PydanticKnownError

MAX_COUNT: Final = 10**9
"""No count in the settings is larger: sizes of arrays, which are products of counts, fit into 64 bits."""

MAX_SHOWN_CHARACTERS: Final = 100

WORDS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("int_type", "int_parsing", "int_parsing_size", "int_from_float"), "expected a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "expected a number"),
    "finite_number": "expected a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "expected true or false"),
    "string_type": "expected text",
    **dict.fromkeys(("dict_type", "mapping_type", "model_type"), "expected keys with values below it"),
    **dict.fromkeys(("list_type", "tuple_type"), "expected a list"),
    "extra_forbidden": "there is no such key",
    "invalid_key": "a key must be text; put it in quotes",
    **dict.fromkeys(("missing", "too_short"), "there are too few values"),
    "too_long": "there are too many values",
}
"""What is wrong, by pydantic's type of error, where pydantic names Python's types and classes."""


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


def reason(error: ErrorDetails) -> str:
    """Return what is wrong with a value."""
    message = error["msg"].removeprefix("Value error, ")
    return WORDS.get(error["type"], f"{message[0].lower()}{message[1:]}")


def shown(value: Any) -> str:
    """Return a value in one line of YAML, in which it was written."""
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, sort_keys=False, width=math.inf)
    line = " ".join(text.removesuffix("...\n").split())
    return line if len(line) <= MAX_SHOWN_CHARACTERS else f"{line[:MAX_SHOWN_CHARACTERS]}…"
