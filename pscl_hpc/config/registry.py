"""Alternatives for one section of the configuration, chosen by its ``name``: methods, trunks.

An implementation registers itself with its configuration. The union of the schema, ``--help``, the report and the
documentation ask the registry, so that adding an implementation touches no other module.
"""

from __future__ import annotations

import importlib
import pkgutil
import types
from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Generic, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidatorFunctionWrapHandler
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from pscl_hpc.config.strict import Strict

UNKNOWN_NAME = "unknown_name"
"""Type of the validation error of a section whose ``name`` nobody registered."""


class NamedConfig(Strict):
    """Configuration of one alternative. A subclass gives ``name`` a literal type: the names that choose it."""

    name: str
    display_name: ClassVar[str] = ""
    """How people write the name."""
    short_key: ClassVar[str] = ""
    """The key that a name of the form ``name:value`` gives, if there is such a form."""


S = TypeVar("S", bound=NamedConfig)
P = TypeVar("P")
T = TypeVar("T")


class Registry(Generic[S, P]):
    """Configurations and implementations by name.

    Args:
        package: The package whose modules hold the implementations; they are imported at the first lookup.
        default: Name that is chosen where a section has none.
    """

    def __init__(self, package: str, *, default: str) -> None:
        self.default = default
        self._package = package
        self._imported = False
        self._found: dict[str, tuple[type[S], type[P]]] = {}

    def register(self, config: type[S]) -> Callable[[type[T]], type[T]]:
        """Class decorator: the class implements what ``config`` describes.

        Raises:
            ValueError: the name is registered already.
        """
        names = get_args(config.model_fields["name"].annotation)

        def add(implementation: type[T]) -> type[T]:
            for name in names:
                if name in self._found:
                    raise ValueError(f"'{name}' is registered twice")
                self._found[name] = (config, implementation)  # type: ignore[assignment]
            return implementation

        return add

    def unregister(self, name: str) -> None:
        """Remove an alternative, for tests."""
        del self._found[name]

    @property
    def names(self) -> tuple[str, ...]:
        """All names, the default first, the others in alphabetical order."""
        found = self._all()
        return tuple(sorted(found, key=lambda name: (name != self.default, name)))

    def config(self, name: str) -> type[S]:
        """The configuration class of a name, also ``name:value``; KeyError when it is not registered."""
        return self._all()[name.partition(":")[0]][0]

    def default_config(self) -> S:
        """The default alternative with its default settings."""
        config: Any = self.config(self.default)
        found: S = config()
        return found

    def implementation(self, config: S) -> type[P]:
        """The class that implements a configuration."""
        return self._all()[config.name][1]

    def choose(self, value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        """Validator of a field that holds one of the alternatives: the section's ``name`` picks its class."""
        if not isinstance(value, Mapping):
            return check(value)
        name = value.get("name", self.default)
        if isinstance(name, str) and ":" in name:
            first, _, rest = name.partition(":")
            short_key = self.config(first).short_key if first in self._all() else ""
            if short_key and short_key not in value:
                name, value = first, {**value, "name": first, short_key: rest}
        if not isinstance(name, str) or name not in self._all():
            context = {"given": str(name), "choices": ", ".join(self.names), "names": self.names}
            raise PydanticCustomError(
                UNKNOWN_NAME, "unknown name '{given}'; choose one of: {choices}", context
            )
        return self.config(name).model_validate(value)

    def _all(self) -> dict[str, tuple[type[S], type[P]]]:
        if not self._imported:
            package = importlib.import_module(self._package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self._package}.{module.name}")
            # Only now: after a failed import the next lookup fails again instead of missing some names.
            self._imported = True
        return self._found


def registry_of(field: FieldInfo) -> Registry[Any, Any] | None:
    """The registry that a field's section is chosen from, if it is."""
    parts = [*field.metadata, *(part for member in get_args(field.annotation) for part in get_args(member))]
    owners = (getattr(getattr(part, "func", None), "__self__", None) for part in parts)
    return next((owner for owner in owners if isinstance(owner, Registry)), None)


def models_in(annotation: Any) -> list[type[BaseModel]]:
    """The section types that a field may hold."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return models_in(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [model for argument in get_args(annotation) for model in models_in(argument)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []
