"""Every file is written whole, beside its name, with the mode of the umask."""

import os
import re
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from escdiff.support.errors import UserError
from escdiff.support.files import keep_umask, make_folder, replacing, save_tensors, write_atomic, write_json

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=[0o022, 0o027, 0o077], ids=oct)
def mode(request):
    """Under this umask, the mode of a new file."""
    old = os.umask(request.param)
    yield 0o666 & ~request.param
    os.umask(old)


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path, monkeypatch):
    make_folder(tmp_path / "a" / "b")
    make_folder(tmp_path / "a")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--store is .*file, which cannot be made a folder"):
        make_folder(tmp_path / "file", "--store")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match="--out is .*a, which you may not write to"):
        make_folder(tmp_path / "a")


def test_files_have_the_mode_of_the_umask(mode, tmp_path):
    save_tensors(tmp_path / "new" / "a.safetensors", {"x": torch.ones(3).expand(2, 3).T}, {"about": "ß"})
    write_json(tmp_path / "b.json", {"größe": 1})
    for path in (tmp_path / "new" / "a.safetensors", tmp_path / "b.json"):
        assert mode_of(path) == mode
    assert torch.equal(load_file(tmp_path / "new" / "a.safetensors")["x"], torch.ones(3, 2))
    assert (tmp_path / "b.json").read_text(encoding="utf-8") == '{\n "größe": 1\n}\n'


def test_private_files_of_a_library_are_opened(mode, tmp_path):
    (tmp_path / "unet").mkdir()
    save_file({"x": torch.ones(3)}, tmp_path / "unet" / "theirs.safetensors")
    save_file({"x": torch.ones(3)}, tmp_path / "mine.safetensors")
    (tmp_path / "mine.safetensors").chmod(0o640)
    assert mode_of(tmp_path / "unet" / "theirs.safetensors") == 0o600  # else `keep_umask` is of no more use
    keep_umask(tmp_path)
    assert mode_of(tmp_path / "unet" / "theirs.safetensors") == mode
    assert mode_of(tmp_path / "mine.safetensors") == 0o640  # someone chose that
    assert {path.name for path in tmp_path.iterdir()} == {"unet", "mine.safetensors"}


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / ("x" * 255)  # the longest name that there is
    write_atomic(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_text(encoding="utf-8") == "old" and len(list(tmp_path.iterdir())) == 1


def test_nothing_else_writes_safetensors():
    """safetensors' own `save_file` makes files that nobody else can read."""
    for folder in ("escdiff", "data_prep"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not re.search(r"\bsave_file\(", path.read_text(encoding="utf-8")), path
