"""Imports run downwards only: the order of docs/architecture.md, module by module."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "pscl_hpc"


def layers() -> dict[str, int]:
    """Row of each package in the diagram of the architecture, 0 at the top."""
    text = (ROOT / "docs/architecture.md").read_text()
    block = next(part for part in re.findall(r"```\n(.*?)```", text, re.S) if "pscl_hpc/cli" in part)
    found = {}
    for row, line in enumerate(block.strip().splitlines()):
        for name in re.findall(r"pscl_hpc/(\w+)", line):
            found[name] = row
    return found


def imports(tree: ast.AST) -> Iterator[str]:
    """Packages of pscl_hpc that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "pscl_hpc":
                names = [f"pscl_hpc.{alias.name}" for alias in node.names]
        for name in names:
            if name.startswith("pscl_hpc."):
                yield name.split(".")[1]


def test_every_package_is_in_the_diagram() -> None:
    here = {
        path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert here - {"__init__", "__version__"} == layers().keys()


def test_no_module_imports_from_its_own_row_or_above() -> None:
    rows = layers()
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).parts
        own = parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for name in imports(ast.parse(path.read_text())):
            if name in rows and name != own and rows[name] <= rows[own]:
                wrong.append(f"{path.relative_to(ROOT)} imports pscl_hpc.{name}")
    assert wrong == []


def test_the_kernels_know_nothing_of_the_toolkit() -> None:
    for path in (ROOT / "kernels/pscl_kernels").rglob("*.py"):
        assert "pscl_hpc" not in set(re.findall(r"(?:from|import) (\w+)", path.read_text())), path


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Of the toolkit and of the kernels, imports for types included."""
    roots = (ROOT, ROOT / "kernels")
    files = [path for name in ("pscl_hpc", "kernels/pscl_kernels") for path in (ROOT / name).rglob("*.py")]
    modules = {_module(path, roots): path for path in files}
    edges = {name: _imported(path, name, modules.keys()) for name, path in modules.items()}
    # Modules that nothing imports are taken away until only circles, and what they import, are left.
    while ends := [name for name, found in edges.items() if not found & edges.keys()]:
        for name in ends:
            del edges[name]
    assert sorted(edges) == []


def _module(path: Path, roots: tuple[Path, ...]) -> str:
    root = next(root for root in reversed(roots) if path.is_relative_to(root))
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def _imported(path: Path, own: str, known: Collection[str]) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # A name may be a module of the package, or come from the package itself.
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & set(known)) or {node.module}
    # A package takes names from its own modules, which do not take them back from it.
    return (found & set(known)) - {own}
