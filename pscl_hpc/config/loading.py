"""YAML files and command-line overrides to a checked configuration, and back.

A file may name another with ``extends: other.yaml`` (relative to itself); its own keys win. Overrides are
``key.sub=value`` with YAML values. The first problem found is reported with file, key and mend.
"""

from __future__ import annotations

import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pscl_hpc.config.methods import METHODS
from pscl_hpc.config.schema import FinetuneConfig, PretrainConfig
from pscl_hpc.errors import UserError, did_you_mean

Config = PretrainConfig | FinetuneConfig
KINDS: dict[str, type[PretrainConfig] | type[FinetuneConfig]] = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
}
_TEXT = "tag:yaml.org,2002:str"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_DATE = "tag:yaml.org,2002:timestamp"
_MERGE = "tag:yaml.org,2002:merge"
_BRANCH = re.compile(r".*\[.*|[A-Z]\w*")
"""A type of several that a value may have, as pydantic writes it among the keys of a location."""


def load_config(path: str | Path, overrides: Sequence[str] = (), *, kind: str | None = None) -> Config:
    """Read, merge and check a configuration file.

    Args:
        path: YAML file.
        overrides: ``key.sub=value`` strings, applied in order.
        kind: when given, the file must be of this kind.

    Raises:
        UserError: naming the file, the key and the mend.
    """
    path = Path(path)
    tree = read_tree(path)
    for text in overrides:
        apply_override(tree, text)
    found = tree.setdefault("kind", kind or "pretrain")
    if not isinstance(found, str) or found not in KINDS:
        raise UserError(f"{path}: kind is '{found}'{did_you_mean(str(found), KINDS)}")
    if kind is not None and found != kind:
        raise UserError(f"{path}: this is a {found} configuration; use 'pscl-hpc {found}' or another file")
    return resolve_config(tree, source=str(path))


def resolve_config(tree: Mapping[str, Any], *, source: str) -> Config:
    """Check a tree of plain values and give the typed configuration. ``source`` names it in errors."""
    schema = KINDS[str(tree.get("kind", "pretrain"))]
    try:
        return schema.model_validate(dict(tree))
    except ValidationError as error:
        raise UserError(f"{source}: {first_problem(schema, error)}") from None


def to_yaml(config: Config) -> str:
    """The resolved configuration, every key written out, as YAML that :func:`load_config` reads."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _Twice(yaml.MarkedYAMLError):
    """A key that stands twice in one mapping, of which plain YAML would keep the last, without a word."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 in which no key stands twice, without its dates and its numbers to the base of sixty: 2026-11-21 is the
    name of a run, and 4:00:00 a time as Slurm writes it, not 14400."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        return _TEXT if tag == _DATE or (tag in _NUMBERS and ":" in value) else tag

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                if key.value in seen:
                    raise _Twice(problem=f"key '{key.value}' stands twice", problem_mark=key.start_mark)
                seen.add(key.value)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (
            AttributeError,
            LookupError,
            ValueError,
        ) as error:  # such as 0x_, of which PyYAML makes no number
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None


def parse_yaml(text: str) -> Any:
    """The content of a YAML text; yaml.YAMLError when it is none."""
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None


def read_tree(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The keys and values of a file, merged over those of the files that it extends.

    Raises:
        UserError: no such file, no YAML, or files that extend each other in a circle; ``seen`` are those on the way.
    """
    real = path.resolve()
    if real in seen:
        raise UserError(
            f"{path}: extends itself through {' -> '.join(p.name for p in (*seen, real))}; break the circle"
        )
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file; check its path") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; name a YAML file") from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); mend that or name another"
        ) from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = f" at line {line + 1}" if line is not None else ""
        if isinstance(error, _Twice):
            raise UserError(f"{path}: {error.problem}, the second time{where}; keep one of them") from None
        raise UserError(f"{path}: not valid YAML{where}; correct the file") from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise UserError(
            f"{path}: holds a {type(tree).__name__}, not keys and values; see configs/ for examples"
        )
    base = tree.pop("extends", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise UserError(f"{path}: extends must name one YAML file")
    return merge_trees(read_tree(path.parent / base, (*seen, real)), tree)


def merge_trees(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the keys of ``top``, which win; sections are merged, one of another ``name`` is replaced."""
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not _another(old, value):
            value = merge_trees(old, value)
        merged[key] = value
    return merged


def _another(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a section is of another method or optimiser, whose keys would be strangers among the old ones.

    One without a name is of none: its keys are meant for whatever it is merged with.
    """
    return "name" in old and "name" in new and old["name"] != new["name"]


def apply_override(tree: dict[str, Any], text: str) -> None:
    """Set one ``key.sub=value`` in place; UserError when it is no override or goes through a value."""
    key, equals, raw = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"'{text}' is no override; write key=value, for example schedule.steps=200")
    try:
        value = parse_yaml(raw) if raw.strip() else ""
    except _Twice as error:
        raise UserError(f"override '{text}': {error.problem}; keep one of them") from None
    except yaml.YAMLError:
        raise UserError(f"override '{text}': the value is not valid YAML; quote it") from None
    if isinstance(value, str) and raw.strip()[:1] not in ("'", '"'):
        value = _number(value)
    node = tree
    for part in parts[:-1]:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            raise UserError(f"override '{text}': {part} holds a value, not keys; see the configuration file")
        node = child
    node[parts[-1]] = value


def _number(text: str) -> str | float:
    # YAML 1.1 reads 1e-4 as text, for want of a dot.
    try:
        return float(text) if any(c.isdigit() for c in text) and "_" not in text else text
    except ValueError:
        return text


def first_problem(schema: type[BaseModel], error: ValidationError) -> str:
    """What a schema found wrong first, as the end of a sentence that names key and mend."""
    first = _nearest(error.errors())
    location = [str(part) for part in first["loc"]]
    kind = first["type"]
    # A key that does not exist stands last and may be called anything.
    last = len(location) - (kind == "extra_forbidden")
    key = ".".join(
        part
        for i, part in enumerate(location)
        if i >= last or not (_BRANCH.fullmatch(part) or (part in METHODS and location[i - 1] == "method"))
    )
    if kind == "extra_forbidden":
        options = _keys_at(schema, location[:-1])
        return f"unknown key '{key}'{did_you_mean(location[-1], options)}"
    if kind == "missing":
        return f"key '{key}' is missing; add it"
    if kind.startswith("union_tag"):
        given = first.get("input")
        name = given.get("name", "") if isinstance(given, dict) else given
        return f"key '{key}.name' is '{name}'{did_you_mean(str(name), METHODS)}"
    message = str(first["msg"]).removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    shown = f", but it is {first['input']!r}" if kind != "value_error" and key else ""
    if kind == "string_type" and isinstance(first["input"], bool | int | float):
        shown += "; quote it, on the command line within a second pair of quotes"
    return f"key '{key}': {message}{shown}" if key else message


def _nearest(errors: Sequence[ErrorDetails]) -> ErrorDetails:
    """The first error; where its value may have one of several types, that of the type which fits the furthest."""
    first = errors[0]["loc"]
    at = next((i for i, part in enumerate(first) if _BRANCH.fullmatch(str(part))), None)
    if at is None:
        return errors[0]
    return max((e for e in errors if e["loc"][:at] == first[:at]), key=lambda e: len(e["loc"]))


def _keys_at(schema: type[BaseModel], location: Sequence[str]) -> list[str]:
    """Keys that are valid below ``location``, following unions by their discriminator."""
    nodes: list[type[BaseModel]] = [schema]
    for part in location:
        deeper: list[type[BaseModel]] = []
        for node in nodes:
            if part in node.model_fields:
                deeper += _models(node.model_fields[part].annotation)
            elif node.model_fields.get("name") is not None and node.model_fields["name"].default == part:
                deeper.append(node)
        nodes = deeper or nodes
    return sorted({key for node in nodes for key in node.model_fields})


def _models(annotation: Any) -> list[type[BaseModel]]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _models(get_args(annotation)[0])
    if origin in (Union, types.UnionType):
        return [model for argument in get_args(annotation) for model in _models(argument)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []
