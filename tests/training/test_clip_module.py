"""Training of the bundled model's CLIP."""

import pytest
import torch
from omegaconf import OmegaConf

from data_prep.still_life import StillLifeOptions, make_still_life
from escdiff.data.arrays import StillLifeArrays
from escdiff.errors import UserError
from escdiff.training.clip_module import CaptionedPictures, ClipModule, build, export


def test_further_training_leaves_the_text_encoder_of_the_unet(tmp_path):
    module = ClipModule(lr=1e-2, max_steps=4, warmup=0)
    export(module, tmp_path / "whole")
    export(module, tmp_path / "clip only", text=False)
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {"clip", "text_encoder", "tokenizer"}
    assert [path.name for path in (tmp_path / "clip only").iterdir()] == ["clip"]


def test_further_training_starts_from_something():
    optim = {"lr": 1e-3, "warmup": 0, "weight_decay": 0.0}
    config = OmegaConf.create({"optim": optim, "trainer": {"max_steps": 1}, "init": None, "export_text": False})
    with pytest.raises(UserError, match="export_text=false given without init"):
        build(config)


def test_rivals_add_what_the_batch_leaves_open(tmp_path):
    """Two pictures' captions are told apart by colours alone; their rivals ask for family and pattern."""
    make_still_life(tmp_path, 6, StillLifeOptions(seed=1))
    torch.manual_seed(0)
    arrays, module = StillLifeArrays(tmp_path), ClipModule(lr=1e-3, max_steps=4)
    visits = [(0, 2), (1, 5)]
    pixels, captions = CaptionedPictures(arrays, seed=3).__getitems__(visits)
    again, texts = CaptionedPictures(arrays, seed=3, num_rivals=4).__getitems__(visits)
    assert torch.equal(pixels, again) and texts.shape[0] == 2 + 2 * 4
    own = texts[2:].unflatten(0, (2, 4))[:, :, : captions.shape[1]]
    assert (own != captions[:, None]).any(-1).all()
    with torch.no_grad():
        alone, both = module.training_step((pixels, captions), 0), module.training_step((pixels, texts), 0)
    assert torch.allclose(alone["loss"], both["logs"]["contrast"], atol=1e-5)
    assert torch.allclose(both["loss"], both["logs"]["contrast"] + both["logs"]["words"])
