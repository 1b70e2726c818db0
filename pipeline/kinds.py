"""Settings whose class is named by their key `kind`: those of the features and of each model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, PydanticKnownError, core_schema


@dataclass(frozen=True)
class ByKind:
    """Pydantic annotation: validates a mapping as the class that its `kind` names.

    A mapping without `kind` is of the `default` kind, and refused if `default` is None.

    `classes` maps each kind to a frozen pydantic model with a field `kind`. It is read at every validation, so a class
    that is registered later is accepted too; a pydantic union would be fixed when the annotated class is defined.
    """

    name: str
    classes: Mapping[str, type[Any]]
    default: str | None

    def class_of(self, settings: Any) -> type[BaseModel]:
        """Return the class for `settings`; raises ValidationError (at the key `kind`) for an unknown kind."""
        if not isinstance(settings, Mapping):
            raise PydanticKnownError("dict_type")
        allowed = ", ".join(self.classes)
        kind = settings.get("kind", self.default)
        if "kind" not in settings and self.default is None:
            raise ValueError(f"kind is missing; choose one of {allowed}")
        if not isinstance(kind, str) or kind not in self.classes:
            raise refusal(f"there is no such {self.name}; allowed here: {allowed}", "kind", kind)
        found: type[BaseModel] = self.classes[kind]
        return found

    def validate(self, settings: Any) -> Any:
        """Return `settings` as an instance of its class; raises ValidationError where it does not fit."""
        if isinstance(settings, tuple(self.classes.values())):
            return settings
        return self.class_of(settings).model_validate(settings)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.validate)


def refusal(message: str, key: str, value: Any) -> ValidationError:
    """Return the error that a validator of a mapping raises because of the `value` at one `key` of it."""
    error = PydanticCustomError("refused", "{message}", {"message": message})
    return ValidationError.from_exception_data("settings", [InitErrorDetails(type=error, loc=(key,), input=value)])
