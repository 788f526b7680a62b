"""Only public interfaces of other libraries: forks break with every release of theirs."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OWN = ("escdiff", "data_prep", "benchmarks")
FILES = sorted(path for room in OWN for path in (ROOT / room).rglob("*.py"))
# Where a library has no public way; each with what would be one.
WITHOUT_A_PUBLIC_WAY = {
    ("escdiff/conditioning/binding.py", "_compiled_call_impl"): "whether Module.compile was called",
    ("escdiff/training/loop/monitoring/watchdog.py", "_dynamo"): "that a compilation begins",
    ("escdiff/backbone/compile.py", "_dynamo"): "how many graphs a function may have",
}
DOCUMENTED = {"_exit", "_asdict"}  # of os and of named tuples, public in spite of their names


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name != "_"


def defined(tree: ast.AST) -> Iterator[str]:
    """Private names that this code makes itself: functions, classes, variables, attributes, fields, arguments."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr  # what is set on another object is that object's


@cache
def our_names() -> frozenset[str]:
    return frozenset(name for path in FILES for name in defined(ast.parse(path.read_text(encoding="utf-8"))))


def private_names(tree: ast.Module, ours: frozenset[str] = frozenset()) -> list[str]:
    """Private names of others: in imports, as attributes of any object, and as texts given to getattr and the like."""
    found = []
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [part for alias in node.names for part in f"{node.module}.{alias.name}".split(".")]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.Attribute):
            names = [node.attr]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr", "delattr"):
            names = [arg.value for arg in node.args[1:2] if isinstance(arg, ast.Constant)]
        found += [name for name in names if is_private(name) and name not in ours]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_private_names(path):
    used = set(private_names(ast.parse(path.read_text(encoding="utf-8")), our_names() | DOCUMENTED))
    allowed = {name for file, name in WITHOUT_A_PUBLIC_WAY if file == str(path.relative_to(ROOT))}
    assert used == allowed


@pytest.mark.parametrize("bad", [
    "import peft._y", "from transformers.models import _x", "from peft._y import z", "diffusers.utils._thing()",
    "config._attn_implementation", "model.config._attn_implementation = 'eager'", "getattr(model, '_orig_mod', model)",
    "hasattr(module, '_hf_hook')", "torch._dynamo.config.cache_size_limit",
])  # fmt: skip
def test_the_test_sees_them(bad):
    tree = ast.parse(bad)
    assert private_names(tree, frozenset(defined(tree))) != []


def test_own_private_names_are_no_findings():
    own = "class A:\n    def __init__(self):\n        self._x = 1\n\ndef _f(a):\n    return a._x\n\n_f(A())._x"
    tree = ast.parse(own)
    assert private_names(tree, frozenset(defined(tree))) == []
