"""Names below "Args:" and "Attributes:" exist in the signature or the class that the docstring is of."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for room in ("escdiff", "data_prep", "benchmarks") for path in (ROOT / room).rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
CLASSES: dict[str, list[ast.ClassDef]] = {}  # by name, those of all files
for tree in TREES.values():
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            CLASSES.setdefault(node.name, []).append(node)


def named(docstring: str, section: str) -> list[str]:
    """What begins an entry of a section: `name: ...`, `one, other: ...`, also behind a full stop in the same line."""
    lines = iter(docstring.splitlines())
    for line in lines:
        if line.strip() == f"{section}:":
            break
    names, indent = [], None
    for line in lines:
        own = len(line) - len(line.lstrip())
        if indent is None:
            indent = own
        if not line.strip() or own < indent:
            break
        if own == indent:
            for found in re.findall(r"(?:^|\. )((?:\*{0,2}\w+, )*\*{0,2}\w+): ", line.strip() + " "):
                names += [name.lstrip("*") for name in found.split(", ")]
    return names


def arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    every = function.args
    rest = [one for one in (every.vararg, every.kwarg) if one]
    return {one.arg for one in (*every.posonlyargs, *every.args, *every.kwonlyargs, *rest)}


def family(node: ast.ClassDef) -> Iterator[ast.ClassDef]:
    """A class and those of ours that it inherits from."""
    yield node
    for base in node.bases:
        name = ast.unparse(base).split("[")[0].split(".")[-1]
        for parent in CLASSES.get(name, []):
            if parent is not node:
                yield from family(parent)


def attributes(node: ast.ClassDef) -> set[str]:
    found = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.ClassDef):
            found.add(inner.name)
        elif isinstance(inner, ast.Attribute) and ast.unparse(inner.value) in ("self", "cls"):
            found |= {inner.attr} if isinstance(inner.ctx, ast.Store) else set()
        elif isinstance(inner, ast.Call) and ast.unparse(inner.func) == "self.register_buffer":
            found |= {arg.value for arg in inner.args[:1] if isinstance(arg, ast.Constant)}
    for inner in node.body:
        targets = [inner.target] if isinstance(inner, ast.AnnAssign) else getattr(inner, "targets", [])
        found |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return found


def known(node: ast.AST, section: str) -> set[str]:
    if not isinstance(node, ast.ClassDef):
        return arguments(node)
    if section == "Attributes":
        return set().union(*map(attributes, family(node)))
    fields = {line.target.id for one in family(node) for line in one.body if isinstance(line, ast.AnnAssign)}
    inits = [f for one in family(node) for f in one.body if isinstance(f, ast.FunctionDef) and f.name == "__init__"]
    return fields.union(*map(arguments, inits))


def unknown(tree: ast.Module) -> list[str]:
    """Names that are documented and do not exist."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            text = ast.get_docstring(node) or ""
            for section in ("Args", "Attributes"):
                lost = [name for name in named(text, section) if name not in known(node, section)]
                found += [f"{node.name}: {section} names {name}" for name in lost]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_documented_names_exist(path):
    assert unknown(TREES[path]) == []


FUNCTION = '''
def f(a, *b):
    """x

    Args:
        a: one. c: two.
            d: three
        b, e: four.
    """
'''
CLASS = '''
class A:
    """x

    Attributes:
        a: one. b: two.
    """

    def f(self):
        self.a = 1
'''


def test_the_check_sees_what_it_should():
    assert unknown(ast.parse(FUNCTION)) == ["f: Args names c", "f: Args names e"]
    assert unknown(ast.parse(CLASS)) == ["A: Attributes names b"]
