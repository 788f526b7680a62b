"""The house in figures: `python benchmarks/house.py`.

Modules and their lengths, circles among imports (those inside functions count), rooms with many files, lines of tests
beside lines of source per room, public functions without a docstring, and seconds until `--help` is printed. Exits
non-zero where a bar is missed.
"""

import ast
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
PACKAGES = ("escdiff", "data_prep")
LONGEST, MEDIAN, CROWDED, TESTED, UNDOCUMENTED = 400, 150, 15, 0.6, 0.05
HELP_SECONDS = 3
ONE_FILE_EACH = ("escdiff/methods", "escdiff/control", "data_prep")  # one file per method, control or stage
MUST_BE_TESTED = ("escdiff/training", "escdiff/evaluation")


def main() -> None:
    modules = {name(file): file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))}
    lengths = {module: len(file.read_text(encoding="utf-8").splitlines()) for module, file in modules.items()}
    written = {module: length for module, length in lengths.items() if modules[module].name != "__init__.py"}
    rooms = defaultdict(list)
    for module in written:
        rooms[modules[module].parent.relative_to(ROOT).as_posix()].append(module)
    crowded = {room: len(files) for room, files in rooms.items() if len(files) > CROWDED and room not in ONE_FILE_EACH}
    longest = max(written, key=written.get)
    rings = circles(arrows(modules))
    public, bare = undocumented(modules)
    ratios = tested(lengths, modules)

    table = Table("figure", "value", "bar")
    rows = [
        ("modules", str(len(written)), "", True),
        ("lines", f"{sum(written.values()):,}", "", True),
        ("median file", f"{statistics.median(written.values()):.0f}", f"≤ {MEDIAN}", True),
        ("longest file", f"{written[longest]} ({longest})", f"≤ {LONGEST}", written[longest] <= LONGEST),
        ("circles", str(len(rings)), "0", not rings),
        (f"rooms above {CROWDED} files", ", ".join(f"{r} {n}" for r, n in crowded.items()) or "0", "0", not crowded),
        *(
            (f"tests ÷ source, {room}", f"{ratio:.2f}", f"≥ {TESTED}" if room in MUST_BE_TESTED else "",
             ratio >= TESTED or room not in MUST_BE_TESTED)
            for room, ratio in ratios.items()
        ),
        ("public functions without docstring", f"{len(bare)} of {public}, {len(bare) / public:.1%}",
         f"≤ {UNDOCUMENTED:.0%}", len(bare) <= UNDOCUMENTED * public),
        *(
            (f"{door} --help", f"{seconds:.2f} s", f"≤ {HELP_SECONDS} s", seconds <= HELP_SECONDS)
            for door, seconds in {door: help_seconds(door) for door in ("train.py", "infer.py")}.items()
        ),
    ]  # fmt: skip
    for label, value, bar, good in rows:
        table.add_row(label, value, bar, style=None if good else "red")
    console = Console()
    console.print(table)
    for ring in rings:
        console.print("circle: " + " → ".join([*ring, ring[0]]))
    raise SystemExit(not all(good for *_, good in rows))


def help_seconds(door: str) -> float:
    """Until `python DOOR --help` has ended, the best of three."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, door, "--help"], cwd=ROOT, check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return min(times)


def name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def arrows(modules: dict[str, Path]) -> dict[str, set[str]]:
    """Module -> modules of ours that it imports anywhere; a package stands for its `__init__`."""
    imports: dict[str, set[str]] = {module: set() for module in modules}
    for module, file in modules.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    imports[module].add(inner if inner in modules else node.module)
            elif isinstance(node, ast.Import):
                imports[module].update(alias.name for alias in node.names)
    return {module: {name for name in names if name in modules and name != module} for module, names in imports.items()}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one module (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    rings: list[list[str]] = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for other in sorted(graph[module]):
            if other not in index:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], index[other])
        if low[module] == index[module]:
            ring = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(ring) > 1:
                rings.append(ring)

    for module in graph:
        if module not in index:
            visit(module)
    return rings


def undocumented(modules: dict[str, Path]) -> tuple[int, list[str]]:
    """How many public functions and classes there are, and those without a docstring; overriding methods are exempt."""
    public, bare = 0, []
    for module, file in modules.items():
        tree = ast.parse(file.read_text(encoding="utf-8"))
        owners = [node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef))]
        for owner, node in ((scope, child) for scope in owners for child in scope.body):
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("_"):
                continue
            if isinstance(owner, ast.ClassDef) and (owner.bases or owner.name.startswith("_")):
                continue  # a subclass's method is described where it is declared
            public += 1
            if ast.get_docstring(node) is None:
                bare.append(f"{module}.{node.name}")
    return public, bare


def tested(lengths: dict[str, int], modules: dict[str, Path]) -> dict[str, float]:
    """Lines of tests ÷ lines of source for each room of the top level that has a folder of tests."""
    ratios = {}
    for room in sorted({"/".join(file.relative_to(ROOT).parts[:2]) for file in modules.values()} | {"data_prep"}):
        tests = ROOT / "tests" / Path(room).name
        source = sum(n for module, n in lengths.items() if modules[module].relative_to(ROOT).is_relative_to(room))
        if tests.is_dir() and source:
            lines = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in tests.rglob("*.py"))
            ratios[room] = lines / source
    return ratios


if __name__ == "__main__":
    main()
