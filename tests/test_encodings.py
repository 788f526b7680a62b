"""Text files are opened in an encoding that the code names: the machine's own is another one on Windows."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(path for room in ("escdiff", "data_prep", "benchmarks", "tests") for path in (ROOT / room).rglob("*.py"))
NOT_TEXT = {"Image", "tarfile", "os", "mmap"}  # whose `open` opens something else
MODE = re.compile(r"[rwax]\+?t?")


def without_encoding(tree: ast.AST) -> Iterator[ast.Call]:
    """Calls of `open`, `read_text` and `write_text` in text mode that name no encoding."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or any(key.arg in ("encoding", None) for key in call.keywords):
            continue
        function, arguments = call.func, [*call.args, *(key.value for key in call.keywords)]
        arguments = [part for a in arguments for part in ((a.body, a.orelse) if isinstance(a, ast.IfExp) else (a,))]
        constants = [a.value for a in arguments if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        if isinstance(function, ast.Attribute) and function.attr in ("read_text", "write_text"):
            yield call
        elif (isinstance(function, ast.Name) and function.id == "open") or (
            isinstance(function, ast.Attribute)
            and function.attr == "open"
            and not (isinstance(function.value, ast.Name) and function.value.id in NOT_TEXT)
        ):
            binary = any("b" in text and MODE.fullmatch(text.replace("b", "")) for text in constants)
            of_path = not arguments or (constants and MODE.fullmatch(constants[0]))
            if not binary and (isinstance(function, ast.Name) or of_path):
                yield call


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_text_file_is_opened_in_a_named_encoding(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [f"line {call.lineno}" for call in without_encoding(tree)] == []


@pytest.mark.parametrize(
    "code, found",
    [("open(p)", 1), ("open(p, 'a')", 1), ("open(p, 'rb')", 0), ("open(p, mode='r+b')", 0), ("p.read_text()", 1),
     ("open(p, 'r+b' if x else 'wb')", 0), ("p.write_text(t)", 1), ("p.write_text(t, encoding='utf-8')", 0),
     ("p.open()", 1), ("p.open('w')", 1), ("p.open('rb')", 0), ("Image.open(p)", 0), ("open(p, **options)", 0)],
)  # fmt: skip
def test_the_finder_finds(code, found):
    assert len(list(without_encoding(ast.parse(code)))) == found
