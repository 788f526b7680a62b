"""docs/train_sd15.md is run as it stands, at toy size: its fenced commands, with the names and options below."""

import csv
import json
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch
from judge_server import serving
from miniatures import write_abo, write_dreambench, write_dreambench_plus
from transformers import CLIPVisionConfig, CLIPVisionModel

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "train_sd15.md"
# What is added to each command, so that it is small; nothing else is changed but the names in the test.
TOY = {
    "python train.py": "trainer=cpu trainer.max_steps=2 trainer.sample_steps=2 trainer.val_steps=2 trainer.log_steps=1 "
    "data.size=64 data.batch_size=2 data.num_workers=0 data.val_fraction=0.3 data.buffer=8 loss.draws=1 optim.warmup=1 "
    "encoder.vision=TOWER encoder.shape_depths=[1,2] encoder.appearance_depths=[0,1] encoder.features=16 "
    "encoder.rank=2 backbone.name=TINY backbone.dtype=float32 logger.name=none",
    "python infer.py": "backbone.name=TINY backbone.dtype=float32 steps=2 num_images=1 size=64 device=cpu",
    "python -m escdiff.evaluation runs": "",
    "python -m escdiff.evaluation": "--backbone TINY --metrics mini --steps 1 --guidance 1 --images 1 --device cpu",
    # a random model finds no things
    "python -m data_prep segment": "--workers 1 --min-area 0 --max-area 1 --min-piece 0 --max-rim 1",
    "python -m data_prep": "--workers 1",
    "python examples/abo_list.py": "",
}  # fmt: skip


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def run(line: str, monkeypatch) -> None:
    """A command of the page in this process, as Python would start it."""
    argv = shlex.split(line)[1:]
    script = argv[1:] if argv[0] == "-m" else argv
    monkeypatch.setattr(sys, "argv", script)
    try:
        if argv[0] == "-m":
            runpy.run_module(script[0], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(ROOT / script[0]), run_name="__main__")
    except SystemExit as end:
        assert not end.code, f"{line} ended with {end.code}"


@pytest.fixture
def names(tmp_path, tiny_folder, tiny_captioner, tiny_segmenter) -> dict[str, str]:
    """What the page's names stand for here."""
    torch.manual_seed(0)
    tower = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2, image_size=32, patch_size=16
    )
    CLIPVisionModel(tower).save_pretrained(tmp_path / "tower")
    write_abo(tmp_path / "abo")
    write_dreambench(tmp_path / "dreambooth")
    write_dreambench_plus(tmp_path / "plus")
    return {
        "ABO": str(tmp_path / "abo"), "DREAMBOOTH": str(tmp_path / "dreambooth"), "TOWER": str(tmp_path / "tower"),
        "DREAMBENCH_PLUS": str(tmp_path / "plus"), "TINY": str(tiny_folder), "512": "64",
        "stable-diffusion-v1-5/stable-diffusion-v1-5": str(tiny_folder), "CIDAS/clipseg-rd64-refined": tiny_segmenter,
        "Salesforce/blip-image-captioning-large": tiny_captioner,
    }  # fmt: skip


@pytest.mark.slow
def test_every_command_of_the_page_runs(names, tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path / "here")
    with serving() as (url, bodies):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        for line in commands():
            added = next(options for start, options in TOY.items() if line.startswith(start))
            words = f"{line} {added}".split(" ") if '"' not in line else [*shlex.split(line), *added.split()]
            for name, here in names.items():
                words = [re.sub(rf"(?<![\w/-]){re.escape(name)}(?![\w/-])", lambda _, h=here: h, w) for w in words]
            run(shlex.join(filter(None, words)), monkeypatch)
    assert bodies and bodies[0]["model"] == "gpt-4o-2024-05-13"
    assert {"dreambench", "squares", "plus", "both"} == {path.name for path in Path("figures").iterdir()}
    assert "prompts/vlm_overall" in json.loads(Path("figures/plus/metrics.json").read_text(encoding="utf-8"))
    metrics = Path("outputs/runs/encoder/metrics.jsonl").read_text(encoding="utf-8")
    assert "val/loss" in metrics and list(Path("outputs/runs/encoder/samples").iterdir())
    assert list(Path("look").rglob("*.png"))


def test_the_list_of_amazon_berkeley_objects(tmp_path, monkeypatch):
    write_abo(tmp_path / "abo")
    run(f"python examples/abo_list.py {tmp_path / 'abo'} --out {tmp_path / 'abo.csv'}", monkeypatch)
    with open(tmp_path / "abo.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10 and {row["object"] for row in rows} == {f"B{i}" for i in range(1, 6)}  # B0 is a book
    assert all(Path(row["path"]).is_file() and row["category"] == "office chair" for row in rows)
