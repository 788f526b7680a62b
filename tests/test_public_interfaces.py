"""Only public interfaces of diffusers, transformers and peft: forks break with every release of theirs."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIBRARIES = ("diffusers", "transformers", "peft")
FILES = sorted(path for room in ("escdiff", "data_prep", "benchmarks") for path in (ROOT / room).rglob("*.py"))


def private_names(tree: ast.Module) -> list[str]:
    """Imports with a part that starts with an underscore, and private attributes of imported modules."""
    found, modules = [], set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] in LIBRARIES:
                modules.add(parts[0])
                if any(part.startswith("_") for part in parts):
                    found.append(name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            root = node
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in modules:
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_private_names(path):
    assert private_names(ast.parse(path.read_text())) == []


def test_the_test_sees_them():
    bad = "import diffusers\nfrom transformers.models import _x\nfrom peft._y import z\ndiffusers.utils._thing()"
    assert len(private_names(ast.parse(bad))) == 3
