"""Python as on Windows, by taking away what it lacks there: no alarms, no pwrite, no locks, no rename of open files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from trouble import BAD, GOOD, make_trouble

from escdiff.data.index import Index

ROOT = Path(__file__).parents[2]
POORER = """
import os, signal, sys
for module, names in ((signal, ("SIGALRM", "ITIMER_REAL", "setitimer", "alarm", "pthread_sigmask")),
                      (os, ("pwrite", "pread", "fork", "posix_fadvise", "mkfifo"))):
    for name in names:
        hasattr(module, name) and delattr(module, name)
sys.modules["fcntl"] = None
replace = os.replace
def strict(source, target, **more):
    for number in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{number}") == os.path.abspath(source):
                raise PermissionError(13, "The process cannot access the file", str(source))
        except FileNotFoundError:
            pass
    replace(source, target, **more)
os.replace = strict
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="cannot tell which files are open here")
@pytest.mark.parametrize("workers", [1, 2])
def test_pictures_become_a_dataset(tmp_path, workers):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(POORER, encoding="utf-8")
    pictures = make_trouble(tmp_path / "pictures")
    paths = [str(tmp_path / "site"), str(ROOT)]
    command = [
        sys.executable,
        "-m",
        "data_prep",
        "ingest",
        str(pictures),
        "--out",
        str(tmp_path / "out"),
        "--max-bad",
        "1",
    ]
    done = subprocess.run(
        [*command, "--workers", str(workers)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{len(GOOD)} samples" in done.stdout and f"{len(BAD)} bad" in done.stdout
    assert Index.load(tmp_path / "out").samples == len(GOOD)
