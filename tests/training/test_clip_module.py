"""Training of the bundled model's CLIP."""

import pytest
import torch

from data_prep.still_life import StillLifeOptions, make_still_life
from escdiff.data.arrays import StillLifeArrays
from escdiff.errors import UserError
from escdiff.training.clip_module import CaptionedPictures, ClipModule, build


def test_a_locked_text_tower_stays_as_it_is():
    torch.manual_seed(0)
    module = ClipModule(lr=1e-2, max_steps=4, warmup=0, lock_text=True)
    optimizer = module.configure_optimizers()["optimizer"]
    before = {name: value.clone() for name, value in module.clip.state_dict().items()}
    pixels, ids = torch.rand(4, 3, 128, 128) * 2 - 1, torch.randint(5, 400, (4, 9))
    ids[:, -1] = 49407
    out = module.clip(input_ids=ids, pixel_values=pixels)
    module.loss(out.image_embeds, out.text_embeds, module.clip.logit_scale.exp()).backward()
    optimizer.step()
    changed = {name for name, value in module.clip.state_dict().items() if not torch.equal(value, before[name])}
    assert not any(name.startswith("text_model") for name in changed)
    assert {"visual_projection.weight", "text_projection.weight"} <= changed
    assert any(name.startswith("vision_model.encoder.layers.0") for name in changed)


def test_a_locked_tower_must_be_a_trained_one(tmp_path):
    from omegaconf import OmegaConf

    optim = {"lr": 1e-3, "warmup": 0, "weight_decay": 0.0, "lock_text": True}
    config = OmegaConf.create({"optim": optim, "trainer": {"max_steps": 1}, "init": None, "seed": 0})
    with pytest.raises(UserError, match="init=FOLDER"):
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
