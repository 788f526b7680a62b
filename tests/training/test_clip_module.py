"""Training of the bundled model's CLIP."""

import pytest
import torch

from escdiff.errors import UserError
from escdiff.training.clip_module import ClipModule, build


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
