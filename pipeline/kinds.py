"""Settings whose class is named by their key `kind`, for example those of the feature extraction."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema


@dataclass(frozen=True)
class ByKind:
    """Pydantic annotation: validates a mapping as the class that its `kind` names, or as the `default` kind without.

    `classes` maps each kind to a frozen pydantic model with a field `kind`. It is read at every validation, so a class
    that is registered later is accepted too; a pydantic union would be fixed when the annotated class is defined.
    """

    name: str
    classes: Mapping[str, type[Any]]
    default: str

    def class_of(self, settings: Any) -> type[BaseModel]:
        """Return the class for `settings`; raises ValidationError (at the key `kind`) for an unknown kind."""
        kind = settings.get("kind", self.default) if isinstance(settings, Mapping) else self.default
        if not isinstance(kind, str) or kind not in self.classes:
            error = PydanticCustomError(
                "unknown_kind",
                "there is no such {name}; allowed here: {allowed}",
                {"name": self.name, "allowed": ", ".join(self.classes)},
            )
            details = InitErrorDetails(type=error, loc=("kind",), input=kind)
            raise ValidationError.from_exception_data(self.name, [details])
        found: type[BaseModel] = self.classes[kind]
        return found

    def validate(self, settings: Any) -> Any:
        """Return `settings` as an instance of its class; raises ValidationError where it does not fit."""
        if isinstance(settings, tuple(self.classes.values())):
            return settings
        return self.class_of(settings).model_validate(settings)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.validate)
