"""Files of the version before the rooms were moved (`before/write.py`) are read, painted with and gone on from."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import escdiff
from escdiff.backbone.branches import Branches, branch_parameters
from escdiff.cli import train
from escdiff.concept import Concept
from escdiff.encoder.checkpoint import read_config
from escdiff.methods.build import find_method
from escdiff.pipelines.generate import generate
from escdiff.support.errors import UserError

BEFORE = Path(__file__).parent / "before"
RUN = ["method=xti", "backbone.name=tiny", "data.references=mug", "data.batch_size=2", "trainer.threads=1",
       "trainer.log_steps=1", "run_dir=run"]  # fmt: skip


@pytest.mark.parametrize(("name", "shapes"), [
    ("encoded", {"shape": (16, 1, 1, 32), "appearance": (16, 1, 1, 32)}),
    ("run/export/concept", {"concept": (16, 1, 1, 32)}),
])  # fmt: skip
def test_concepts(name, shapes, tiny_backbone):
    file = BEFORE / f"{name}.safetensors"
    concept = Concept.load(file)
    assert {a: tuple(v.shape) for a, v in concept.vectors.items()} == shapes and concept.base_model in ("tiny", "mini")
    stored = load_file(file)
    assert all(torch.equal(concept.vectors[a], stored[f"vectors.{a}"]) for a in shapes)
    assert all(torch.equal(concept.anchors[a], stored[f"anchors.{a}"]) for a in shapes)
    word = "a <concept>"
    painted, again = (
        np.asarray(generate(tiny_backbone, [word], one, steps=1)[0], int) for one in (concept, concept.scaled(0.0))
    )
    assert painted.shape == (128, 128, 3) and (painted != again).any()
    pipeline = tiny_backbone.pipeline()
    assert set(escdiff.load_concept(pipeline, file)) == set(concept.placeholders())
    escdiff.unload_concept(pipeline)


def test_the_configuration_of_an_encoder(tmp_path, tiny_backbone):
    shutil.copy(BEFORE / "encoder.json", tmp_path / "config.json")
    _, about, config, space = read_config(tmp_path, tiny_backbone)
    assert (config.vision, config.features, config.tokens) == ("tower", 4, {"shape": 1, "appearance": 1})
    assert list(config.shape_depths) == [1] and space.num_layers == 16 and about["base_model"] == "tiny"
    about["encoder"]["placement"] = "states"
    (tmp_path / "config.json").write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(UserError, match="encoder.placement=states, which was given up"):
        read_config(tmp_path)


def test_branches(tiny_backbone):
    import tiny

    unet = tiny.make_unet()
    Branches.read(BEFORE, names=("shape",)).put(unet)
    values = [float(weights.detach().unique()) for weights in branch_parameters(unet, "shape")]
    assert values == pytest.approx([0.01 * (number + 1) for number in range(64)])


def test_every_methods_target_of_before_is_still_its_class():
    names = {"custom_diffusion": "CustomDiffusion", "dreambooth": "DreamBooth", "e4t": "E4T", "elite": "ELITE",
             "escdiff_tuned": "ESCDiffTuned", "ip_adapter": "IPAdapter", "matte": "MATTE", "neti": "NeTI",
             "prospect": "ProSpect", "ti": "TI", "xti": "XTI"}  # fmt: skip
    for module, name in names.items():
        assert find_method(f"escdiff.methods.{module}.{name}").__name__ == name


@pytest.mark.slow
def test_a_run_goes_on_with_the_weights_and_the_optimizer_of_its_checkpoint(tmp_path, tiny_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(BEFORE / "run", "run")
    Path("tiny").symlink_to(tiny_folder)
    Path("mug").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(Path("mug") / name)
    train._main([*RUN, "trainer.max_steps=4"])
    manifest = json.loads(Path("run/manifest.json").read_text(encoding="utf-8"))
    assert (manifest["status"], manifest["step"]) == ("finished", 4) and "step-000000002" in manifest["resumed"]
    checkpoint = torch.load("run/checkpoints/step-000000004.ckpt", weights_only=True)
    (state,) = checkpoint["optimizer_states"][0]["state"].values()
    assert state["step"] == 4  # of Adam: two of them were taken before
    folders = (BEFORE / "run", Path("run"))
    two, four = (Concept.load(folder / "export/concept.safetensors").vectors["concept"] for folder in folders)
    assert 0 < (four - two).abs().max() < 2.5 * 5e-3  # two steps of Adam at this rate
    shutil.copy("mug/a.png", "mug/b.png")
    with pytest.raises(UserError, match="other references"):  # of this version, by their files
        train._main([*RUN, "trainer.max_steps=6"])
