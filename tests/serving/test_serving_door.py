"""The command `escdiff-serve`: what it refuses before anything is loaded, and what the Docker image calls it with."""

import inspect
import re
import sys
from pathlib import Path

import pytest

import escdiff.serving.__main__ as door
from escdiff.serving import on_ray
from escdiff.serving.limits import Limits
from escdiff.serving.settings import VARIABLE, Settings
from escdiff.support.errors import UserError

ROOT = Path(__file__).parents[2]


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["escdiff-serve", *arguments])
    with pytest.raises(SystemExit) as end:
        door.main()
    return end.value.code


@pytest.mark.parametrize(
    ("arguments", "keys", "said"),
    [
        (["--host", "0.0.0.0"], "", "no API keys"),
        ([], "ann:short", "less than 16"),
        (["--backbone", "/nowhere"], "", "/nowhere"),
        (["--encoder", "/nowhere"], "", "no encoder in"),
    ],
)
def test_mistakes_are_told_at_once(monkeypatch, capsys, tmp_path, arguments, keys, said):
    monkeypatch.setenv("ESCDIFF_API_KEYS", keys)
    assert run(monkeypatch, "--store", str(tmp_path), *arguments) == 2
    shown = capsys.readouterr().err
    assert said in shown and shown.startswith("error: ") and "Traceback" not in shown


@pytest.mark.parametrize("below", ["file", "file/store"])
def test_a_store_that_cannot_be_a_folder_is_told(monkeypatch, capsys, tmp_path, below):
    (tmp_path / "file").touch()
    assert run(monkeypatch, "--store", str(tmp_path / below)) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: --store is {tmp_path / below}, which cannot be") and shown.count("\n") == 1


def test_settings_pass_through_the_environment():
    settings = Settings("/srv", "sd15", "DIR", 3.0, owners={"0a": "ann"}, limits=Limits(queue=3, seconds=1.5))
    made = settings.to_environment()
    assert list(made) == [VARIABLE] and Settings.from_environment(made) == settings


def test_the_options_of_the_docker_image_are_there():
    """The image itself is built where Docker is."""
    text = (ROOT / "integrations" / "server" / "Dockerfile").read_text(encoding="utf-8")
    used = set(re.findall(r"--(?:host|store|backbone|encoder)\b", text))
    assert used == {"--host", "--store", "--backbone", "--encoder"}
    assert used <= {f"--{name}".replace("_", "-") for name in inspect.signature(door.serve).parameters}
    for line in re.findall(r"^COPY (.+) \S+$", text, re.M):
        assert all((ROOT / name).exists() for name in line.split())


def test_ray_that_is_missing_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"escdiff\[serve,ray\]"):
        on_ray.deploy(Settings("/srv"), "127.0.0.1", 1, 1, 0.0)
