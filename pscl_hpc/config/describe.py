"""Every key of a configuration with its meaning, type and default, as YAML that can be saved and edited."""

from __future__ import annotations

import ast
import inspect
import textwrap
import types
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic import BaseModel, create_model
from pydantic.fields import FieldInfo

from pscl_hpc.config.registry import models_in, registry_of

_WIDTH = 110
_NAMES = {int: "integer", float: "number", str: "text", bool: "true or false"}
_BOUNDS = ((annotated_types.Ge, "ge", ">="), (annotated_types.Gt, "gt", ">"),
           (annotated_types.Le, "le", "<="), (annotated_types.Lt, "lt", "<"))  # fmt: skip


def describe(schema: type[BaseModel], chosen: Mapping[str, str]) -> str:
    """The keys of a schema as commented YAML.

    Args:
        schema: A run's configuration.
        chosen: Name of the alternative for sections that have several, such as ``{"method": "simclr"}``.

    Raises:
        KeyError: a chosen name is not registered.
    """
    return "\n".join(_section(schema, chosen, "")) + "\n"


def _section(schema: type[BaseModel], chosen: Mapping[str, str], indent: str) -> Iterator[str]:
    for key, field in schema.model_fields.items():
        registry = registry_of(field)
        if registry is not None:
            name = chosen.get(key, registry.default)
            section: type[BaseModel] | None = _named(registry.config(name), name)
            kind = f"one of {', '.join(registry.names)}"
        else:
            section = next(iter(models_in(field.annotation)), None)
            kind = type_text(field.annotation, tuple(field.metadata))
        if section is None:
            note = f"{kind}; required" if field.is_required() else kind
            yield from _comment(meaning(schema, key), note, indent)
            yield f"{indent}{key}:" if field.is_required() else f"{indent}{key}: {_value(field)}"
            continue
        optional = field.default is None and not field.is_required() and key not in chosen
        summary = (section.__doc__ or "").strip().partition("\n\n")[0].replace("\n    ", " ")
        note = kind if registry is not None else "section"
        if optional:
            note += "; absent by default"
        yield from _comment(meaning(schema, key) or summary, note, indent)
        yield f"{indent}{key}:" + (" null" if optional else "")
        inner = list(_section(_with_defaults(section, field), chosen, indent + "  "))
        yield from (f"{indent}# {line.removeprefix(indent)}" for line in inner) if optional else inner


def meaning(schema: type[BaseModel], key: str) -> str:
    """The text below a key in the class that defines it; empty if there is none."""
    return next((text for owner in schema.__mro__ if (text := _meanings(owner).get(key))), "")


# Not pydantic's use_attribute_docstrings, which reads the source of every class whenever it is imported.
@cache
def _meanings(owner: type) -> dict[str, str]:
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    except (OSError, TypeError):  # not made from a source
        return {}
    assert isinstance(tree, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in pairwise(tree.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def _named(section: type[BaseModel], name: str) -> type[BaseModel]:
    """The section with ``name`` as the default of its name, which several alternatives may share a class for."""
    field = section.model_fields["name"]
    namespace: dict[str, Any] = {"__base__": section, "name": (field.annotation, _replaced(field, name))}
    created: type[BaseModel] = create_model(section.__name__, __doc__=section.__doc__, **namespace)
    return created


def _with_defaults(section: type[BaseModel], field: FieldInfo) -> type[BaseModel]:
    """The section with the defaults that it has at this key, where they differ from those of its class."""
    given = field.default
    if not isinstance(given, section):
        return section
    changed = {key: getattr(given, key) for key in given.model_fields_set}
    fields = {
        key: (f.annotation, _replaced(f, changed[key]))
        for key, f in section.model_fields.items()
        if key in changed
    }
    namespace: dict[str, Any] = {"__base__": section, **fields}
    created: type[BaseModel] = create_model(section.__name__, **namespace)
    return created


def _replaced(field: FieldInfo, default: Any) -> FieldInfo:
    return FieldInfo.merge_field_infos(field, default=default)


def _comment(text: str | None, note: str, indent: str) -> Iterator[str]:
    words = " ".join((text or "").replace("``", "").split())
    full = f"{words} ({note})" if words else f"({note})"
    for line in textwrap.wrap(full, _WIDTH - len(indent)):
        yield f"{indent}# {line}"


def _value(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if isinstance(value, tuple):
        value = list(value)
    return (
        yaml.safe_dump(value, default_flow_style=True, width=10**6)
        .removesuffix("\n")
        .removesuffix("\n...")
        .strip()
    )


def type_text(annotation: Any, metadata: tuple[Any, ...] = ()) -> str:
    """A type in words, with its bounds: ``number > 0``, ``adam | adamw``, ``list of text``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(arguments[0], (*arguments[1:], *metadata))
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        return " or ".join(type_text(part) for part in arguments if part is not type(None))
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of {type_text(arguments[0])}"
        return "[" + ", ".join(map(type_text, arguments)) + "]"
    bounds = [f"{sign} {getattr(part, name):g}" for part in _flat(metadata)
              for kind, name, sign in _BOUNDS if isinstance(part, kind)]  # fmt: skip
    name = _NAMES.get(annotation, getattr(annotation, "__name__", str(annotation)))
    return f"{name} {' and '.join(bounds)}".strip()


def _flat(metadata: tuple[Any, ...]) -> Iterator[Any]:
    for part in metadata:
        yield from part.metadata if isinstance(part, FieldInfo) else (part,)
