"""What we write, we read: in a new process, as another user, and by stock diffusers where it should."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import artefacts
import pytest


@pytest.fixture(scope="module")
def trip():
    """(folder, name -> digest of what was written, what the reader's process printed)."""
    root, old = Path(tempfile.mkdtemp(prefix="escdiff-")), os.umask(0o022)
    try:
        root.chmod(0o755)  # pytest's own folders are closed to others
        written = artefacts.write_all(root)
        read = subprocess.run(
            [sys.executable, artefacts.__file__, str(root)], capture_output=True, text=True, timeout=900,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        assert read.returncode == 0, read.stderr[-3000:]
        yield root, written, json.loads(read.stdout.splitlines()[-1])
    finally:
        os.umask(old)
        shutil.rmtree(root)


@pytest.mark.slow
@pytest.mark.parametrize("name", artefacts.READERS)
def test_read_equals_written(trip, name):
    _, written, read = trip
    assert read["found"][name] == written[name]


@pytest.mark.slow
def test_another_user_opens_every_file(trip):
    root, _, read = trip
    assert read["user"] == (artefacts.NOBODY if os.getuid() == 0 else os.getuid())
    files = [path for path in root.rglob("*") if path.is_file() and path.parent.name != "theirs"]
    assert read["opened"] == sum(path.stat().st_size > 0 for path in files) > 40


@pytest.mark.slow
def test_files_have_the_mode_of_the_umask(trip):
    root, _, _ = trip
    files = [path for path in root.rglob("*") if path.is_file() and path.parent.name != "theirs"]
    closed = [str(path.relative_to(root)) for path in files if path.stat().st_mode & 0o777 != 0o644]
    assert len(files) > 40 and not closed


@pytest.mark.slow
def test_nothing_that_is_shared_names_a_place_of_this_machine(trip):
    root, _, _ = trip
    for name in ("pipeline", *artefacts.KINDS):
        for path in (root / name).rglob("*"):
            if path.suffix in (".json", ".md") and path.name != "local.json":
                assert str(root) not in path.read_text(encoding="utf-8"), path
