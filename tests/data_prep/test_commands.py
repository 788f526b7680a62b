"""The command line: what an option cannot do is said, before anything is read."""

import pytest
from typer.testing import CliRunner

from data_prep import __main__ as door
from data_prep.__main__ import app
from escdiff.support.errors import UserError

IGNORED = {
    "ingest pictures --out o --fetcher x": "--fetcher .* without --urls",
    "ingest pictures --out o --split train": "--split .* without a saved dataset",
    "ingest a.csv --out o --folder-is object": "--folder-is .* without a folder",
    "ingest a.tar --out o --shard-size 9": "--shard-size .* as shards keep their sizes",
    "dedup set --out o --similarity 0.9": "--similarity .* without --clip",
    "dedup set --out o --device cpu": "--device .* without --clip",
    "segment set --out o --min-score 0.5": "--min-score .* without --model",
    "segment set --out o --source alpha --model x": "--model .* --source of auto or model",
    "caption set --out o --prompt x": "--prompt .* without --model",
    "caption set --out o --again": "--again .* without --model",
    "latents set --gpus 1": "--gpus .* without --engine ray",
}


@pytest.mark.parametrize("command", IGNORED)
def test_options_without_effect_are_refused(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    result = CliRunner().invoke(app, command.split())
    assert isinstance(result.exception, UserError)
    with pytest.raises(UserError, match=IGNORED[command]):
        raise result.exception
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pictures"]


def main(monkeypatch, *arguments) -> int:
    monkeypatch.setattr("sys.argv", ["data_prep", *arguments])
    with pytest.raises(SystemExit) as end:
        door.main()
    return end.value.code


def test_ctrl_c_says_that_the_command_goes_on(monkeypatch, capsys):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("escdiff.data.shards.index_folder", stopped)
    assert main(monkeypatch, "index", "folder") == 130
    assert capsys.readouterr().err == "stopped; the same command goes on after what is finished\n"


@pytest.mark.parametrize("below", ["file", "file/sheets"])
def test_sheets_that_have_no_folder_are_told(monkeypatch, capsys, tmp_path, below):
    (tmp_path / "file").touch()
    assert main(monkeypatch, "sheets", "--out", str(tmp_path / below)) == 2
    shown = capsys.readouterr().err
    assert f"--out is {tmp_path / below}, which cannot be" in shown and shown.count("\n") == 1
