"""YAML files and command-line overrides to a checked configuration, and back.

A file may name another with ``extends: other.yaml`` (relative to itself); its own keys win. A file ``configs/...`` that is
not there is that of the package. Overrides are ``key.sub=value`` with YAML values. The first problem is reported with file,
key and fix.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pscl_hpc.config.packaged import packaged_path
from pscl_hpc.config.problems import first_problem
from pscl_hpc.config.sections import RunConfig
from pscl_hpc.config.strict import EXCLUSIVE, without_replaced
from pscl_hpc.errors import UserError, did_you_mean

_KINDS = {
    "pretrain": "pscl_hpc.pretraining.config",
    "finetune": "pscl_hpc.segmentation.config",
    "classifier": "pscl_hpc.segmentation.classifier_config",
}
"""The module of each kind's schema, imported when a file of the kind is read: each task owns its configuration."""
CLUSTER = "cluster"
"""Section of a file with scheduler options."""
_CHOICES = ("method", "model", "semi_supervised", "features", "head")
"""Sections whose ``name`` decides which keys they have."""
_TEXT = "tag:yaml.org,2002:str"
_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_DATE = "tag:yaml.org,2002:timestamp"
_MERGE = "tag:yaml.org,2002:merge"


def schema_of(kind: str) -> type[RunConfig]:
    """The schema of a kind of run; KeyError when there is no such kind."""
    importlib.import_module(_KINDS[kind])
    return next(schema for schema in _subclasses(RunConfig) if schema.model_fields["kind"].default == kind)


def _subclasses(schema: type[RunConfig]) -> Iterator[type[RunConfig]]:
    for found in schema.__subclasses__():
        yield found
        yield from _subclasses(found)


def load_config(path: str | Path, overrides: Sequence[str] = (), *, kind: str | None = None) -> RunConfig:
    """Read, merge and check a configuration file.

    Args:
        path: YAML file.
        overrides: ``key.sub=value`` strings, applied in order.
        kind: when given, the file must be of this kind.

    Raises:
        UserError: naming the file, the key and the fix.
    """
    path = Path(path)
    tree = read_tree(path)
    apply_overrides(tree, overrides)
    # Where a run is computed is no part of it; the launch checks this section.
    tree.pop(CLUSTER, None)
    found = tree.setdefault("kind", kind or "pretrain")
    if not isinstance(found, str) or found not in _KINDS:
        raise UserError(f"{path}: kind is '{found}'{did_you_mean(str(found), _KINDS)}")
    if kind is not None and found != kind:
        raise UserError(f"{path}: this is a {found} configuration; use 'pscl-hpc {found}' or another file")
    return resolve_config(tree, source=str(path), overrides=overrides)


def load_cluster(path: str | Path, overrides: Sequence[str] = ()) -> Any:
    """The unchecked section ``cluster`` of a configuration file: scheduler options, which only a submission uses.

    Raises:
        UserError: as :func:`load_config`.
    """
    tree = read_tree(Path(path))
    apply_overrides(tree, overrides)
    return tree.get(CLUSTER)


def resolve_config(tree: Mapping[str, Any], *, source: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Validate a tree of plain values. ``source`` names it in errors, unless the key is that of an override."""
    schema = schema_of(str(tree.get("kind", "pretrain")))
    try:
        return schema.model_validate(dict(tree))
    except ValidationError as error:
        problem = first_problem(schema, error, tree)
        given = any(f"key '{text.partition('=')[0].strip()}'" in problem for text in overrides)
        raise UserError(f"{'command line' if given else source}: {problem}") from None


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration with every key, as YAML that :func:`load_config` reads."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class _DuplicateKey(yaml.MarkedYAMLError):
    """A key that appears twice in one mapping; plain YAML would silently keep the last."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 without duplicate keys, dates and base-60 numbers: 2026-11-21 may name a run, and 4:00:00 is a Slurm
    time limit, not 14400."""

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        return _TEXT if tag == _DATE or (tag in _NUMBERS and ":" in value) else tag

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                if key.value in seen:
                    raise _DuplicateKey(
                        problem=f"key '{key.value}' appears twice", problem_mark=key.start_mark
                    )
                seen.add(key.value)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (
            AttributeError,
            LookupError,
            ValueError,
        ) as error:  # such as 0x_, which PyYAML cannot convert
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from None


def parse_yaml(text: str) -> Any:
    """The content of a YAML text; yaml.YAMLError when it is invalid."""
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None


def read_tree(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The keys and values of a file, merged over those of the files that it extends.

    Raises:
        UserError: the file does not exist or is not valid YAML, or files extend each other in a circle. ``seen`` are
            the files that led here.
    """
    real = path.resolve()
    if real in seen:
        raise UserError(
            f"{path}: extends itself through {' -> '.join(p.name for p in (*seen, real))}; break the circle"
        )
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        own = packaged_path(path)
        if own is not None and own != path:
            return read_tree(own, seen)
        raise UserError(f"{path}: no such configuration file; check its path") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; name a YAML file") from None
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); fix that or name another file"
        ) from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        line = getattr(getattr(error, "problem_mark", None), "line", None)
        where = f" at line {line + 1}" if line is not None else ""
        if isinstance(error, _DuplicateKey):
            raise UserError(f"{path}: {error.problem}{where}; keep one of them") from None
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
    file = path.parent / base
    if not file.exists():
        file = packaged_path(Path(base)) or file
    return merge_trees(read_tree(file, (*seen, real)), tree)


def merge_trees(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the keys of ``top``, which win. Sections are merged; a section of another method is replaced."""
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not _other_choice(key, old, value):
            value = merge_trees(without_replaced(key, old, value), value)
        merged[key] = value
    return merged


def _other_choice(key: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    """Whether a section chooses another method or trunk, which does not have the old one's keys."""
    return key in _CHOICES and "name" in old and "name" in new and old["name"] != new["name"]


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set ``key.sub=value`` strings in place; UserError when one is not an override.

    Names of methods and trunks come first, whatever the order: another name drops the keys of the old one.
    """
    _check_exclusive(overrides)
    for text in sorted(overrides, key=lambda text: not _names_choice(text.partition("=")[0])):
        _apply_override(tree, text)


def _names_choice(key: str) -> bool:
    *_, section, last = ("", *key.strip().split("."))
    return last == "name" and section in _CHOICES


def _apply_override(tree: dict[str, Any], text: str) -> None:
    """Set one ``key.sub=value`` in place; UserError when it is not an override or a parent key holds a value."""
    key, equals, raw = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise UserError(f"'{text}' is not an override; write key=value, for example schedule.steps=200")
    try:
        value = parse_yaml(raw) if raw.strip() else ""
    except _DuplicateKey as error:
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
    if _names_choice(key) and _other_choice(parts[-2], node, {"name": value}):
        node.clear()
    node[parts[-1]] = value
    section = parts[-2] if len(parts) > 1 else ""
    for name in node.keys() - without_replaced(section, node, {parts[-1]: value}).keys():
        del node[name]


def dotted(tree: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The values of a tree by their dotted keys. An empty section has none."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= dotted(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return found


def _check_exclusive(overrides: Sequence[str]) -> None:
    given = [text.partition("=")[0].strip() for text in overrides]
    for section, keys in EXCLUSIVE.items():
        both = [f"{section}.{key}" for key in keys if f"{section}.{key}" in given]
        if len(both) > 1:
            raise UserError(f"{' and '.join(both)} are both given; leave one of them out")


def _number(text: str) -> str | float:
    # YAML 1.1 reads 1e-4 as text because it has no dot.
    try:
        return float(text) if any(c.isdigit() for c in text) and "_" not in text else text
    except ValueError:
        return text
