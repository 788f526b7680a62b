"""The command line: what an option cannot do is said, before anything is read."""

import pytest
from typer.testing import CliRunner

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
