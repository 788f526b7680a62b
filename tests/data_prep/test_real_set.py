"""Real photographs and a folder of trouble through every command to training steps."""

import json
import shutil
from pathlib import Path

import pytest
import skimage
from trouble import BAD, encoded, make_trouble
from typer.testing import CliRunner

from data_prep.__main__ import app
from escdiff.backbone import mini_folder
from escdiff.cli import train
from escdiff.data.index import Index
from escdiff.data.pictures import SUFFIXES, open_image

pytestmark = pytest.mark.slow


@pytest.fixture
def pictures(tmp_path) -> Path:
    """The sample photos of scikit-image and scikit-learn, the trouble, and one photo a second time."""
    folder = tmp_path / "pictures"
    make_trouble(folder / "trouble")
    sources = [Path(skimage.__file__).parent / "data"]
    try:
        import sklearn

        sources.append(Path(sklearn.__file__).parent / "datasets" / "images")
    except ImportError:
        pass
    for source in sources:
        (folder / source.parent.name).mkdir()
        for file in source.iterdir():
            if file.suffix in SUFFIXES:
                shutil.copy(file, folder / source.parent.name)
    again = open_image(folder / "skimage" / "chelsea.png").resize((300, 200))
    (folder / "skimage" / "chelsea-again.jpg").write_bytes(encoded(again, "JPEG", quality=70))
    return folder


def call(*arguments) -> str:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def rejects(folder: Path, kind: str) -> set[str]:
    lines = [
        line for f in (folder / "quarantine").glob("*.jsonl") for line in f.read_text(encoding="utf-8").splitlines()
    ]
    return {Path(r.get("source", r["key"])).name for r in map(json.loads, lines) if r["kind"] == kind}


def test_from_pictures_to_training_steps(pictures, tmp_path, tiny_segmenter, tiny_captioner, tiny_folder):
    pytest.importorskip("imagehash")
    one = ("--workers", 1)
    call("ingest", pictures, "--out", tmp_path / "a", "--shard-size", 8, "--max-side", 512, "--max-bad", 0.5, *one)
    assert rejects(tmp_path / "a", "bad") - {"multipage_rgb.tif"} == set(BAD)
    assert Index.load(tmp_path / "a").samples >= 35
    call("inspect", tmp_path / "a", *one)
    assert json.loads((tmp_path / "a" / "inspect.json").read_text(encoding="utf-8"))["broken"] == []
    call("dedup", tmp_path / "a", "--out", tmp_path / "b", *one)
    assert 2 <= Index.load(tmp_path / "a").samples - Index.load(tmp_path / "b").samples <= 14
    lax = ("--min-area", 0, "--max-area", 1, "--min-piece", 0, "--max-rim", 1)
    call("segment", tmp_path / "b", "--out", tmp_path / "c", "--model", tiny_segmenter, *lax, *one)
    call("caption", tmp_path / "c", "--out", tmp_path / "d", "--model", tiny_captioner, *one)
    call("pairs", tmp_path / "d", "--out", tmp_path / "e", "--size", 128, "--min-overlap", 0.3, *one)
    backbone = "mini" if (mini_folder() / "unet" / "config.json").is_file() else str(tiny_folder)
    call("latents", tmp_path / "e", "--backbone", backbone, "--size", 128, *one)
    assert "as the index says" in call("verify", tmp_path / "e", *one)
    assert Index.load(tmp_path / "e").samples >= 16

    run = tmp_path / "run"
    train._main([
        f"data.shards={tmp_path / 'e'}", f"backbone.name={backbone}", "data.batch_size=4", "trainer.max_steps=3",
        "data.buffer=10", "trainer.threads=1", "trainer.log_steps=1", "trainer.sample_steps=0", "encoder.features=16",
        "loss.words_only=0", f"run_dir={run}",
    ])  # fmt: skip
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert json.loads((run / "manifest.json").read_text(encoding="utf-8"))["status"] == "finished"
    assert max(row["step"] for row in rows) == 2 and all(row.get("loss", 0) < 10 for row in rows)
