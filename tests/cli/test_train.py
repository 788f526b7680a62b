"""The door of training, on a tiny backbone and a little rendered world."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from escdiff.cli import train
from escdiff.encoder import ConceptEncoder
from escdiff.mini.data.still_life import StillLifeOptions, make_still_life
from escdiff.support.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def common(tmp_path_factory, tiny_folder):
    """Arguments that make a step take a moment."""
    root = tmp_path_factory.mktemp("train")
    torch.manual_seed(0)
    tower = CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2,
                             image_size=32, patch_size=16)  # fmt: skip
    CLIPVisionModel(tower).save_pretrained(root / "tower")
    make_still_life(root / "world [1]", 96, StillLifeOptions(seed=1, size=64))
    return [
        f"backbone.name={tiny_folder}", f"encoder.vision={root / 'tower'}", f"data.root={root / 'world [1]'}",
        "encoder.features=16", "data.batch_size=4", "data.val_fraction=0", "trainer.sample_steps=0",
        "trainer.threads=1", "trainer.log_steps=1", "experiment=null",  # mini's own nouns need a whole CLIP
    ]  # fmt: skip


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_run_and_what_it_leaves(common, tmp_path):
    train._main([*common, "trainer.max_steps=3", f"run_dir={tmp_path / 'run, one'}"])
    folder = tmp_path / "run, one"
    assert json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["status"] == "finished"
    assert (folder / "config.yaml").is_file() and max(steps(folder)) == 2
    assert ConceptEncoder.from_pretrained(folder / "export").space.num_layers == 16


@pytest.mark.slow
def test_killed_and_started_again(common, tmp_path):
    """A real process and a real SIGKILL; the second run goes on behind the last checkpoint."""
    arguments = [*common, "trainer.max_steps=400", "trainer.save_steps=5", f"run_dir={tmp_path}"]
    command = [sys.executable, str(ROOT / "train.py"), *arguments]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        for _ in range(3000):
            if list((tmp_path / "checkpoints").glob("step-*.ckpt")) or process.poll() is not None:
                break
            time.sleep(0.2)
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    reached = max(int(path.stem.split("-")[1]) for path in (tmp_path / "checkpoints").glob("step-*.ckpt"))
    arguments[-2] = f"trainer.save_steps={reached}"
    train._main([*arguments[:-3], f"trainer.max_steps={reached + 2}", *arguments[-2:]])
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["status"] == "finished" and f"{reached}.ckpt" in manifest["resumed"]
    assert steps(tmp_path) == list(range(reached + 2))  # no step is missing, none is there twice


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["optim.lrr=1"], "optim.lr"),
        (["+encoder.wings=2"], "encoder.wings"),
        (["+loss.wings=2"], "loss.wings"),
        (["recipe=cake"], "recipe 'cake'"),
        (["encoder.gates=some"], "encoder.gates=some given; expected learned, hand or none"),
        (["data.shards=nowhere"], "nowhere"),
        (["data.shards={empty}"], "holds no"),
        (["data.root=null"], "data.root=None"),
        (["backbone.dtype=half"], "backbone.dtype=half"),
        (["trainer.strategy=fast"], "trainer.strategy=fast"),
        (["trainer.devices=0"], "trainer.devices=0"),
        (["recipe=vae", "init={empty}"], "no vae in"),
        (["recipe=unet", "init={empty}"], "no unet in"),
        (["method=ti", "data.references={data}", "init={empty}"], "leave it out"),
        (["backbone.name=nowhere/at/all.safetensors", "data.shards={data}"], "nowhere"),
        (["backbone=sd15", "data.root=outputs/still_life"], "data.shards=DIR"),
    ],
)
def test_refused_in_one_sentence(common, tmp_path, arguments, words):
    data = next(c.split("=", 1)[1] for c in common if c.startswith("data.root"))
    (tmp_path / "empty").mkdir()
    arguments = [a.replace("{data}", data).replace("{empty}", str(tmp_path / "empty")) for a in arguments]
    kept = [c for c in common if not ("backbone=sd15" in arguments and c.startswith(("backbone", "data.root")))]
    with pytest.raises(UserError) as caught:
        train._main([*kept, f"run_dir={tmp_path}", "trainer.max_steps=1", *arguments])
    assert words in str(caught.value) and "\n" not in str(caught.value)
