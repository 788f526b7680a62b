"""Training of the bundled model's CLIP."""

import pytest
import torch
from omegaconf import OmegaConf

from data_prep.still_life import StillLifeOptions, make_still_life
from escdiff.data.arrays import LABELS, StillLifeArrays
from escdiff.errors import UserError
from escdiff.training.clip_module import CaptionedPictures, ClipModule, build, export, normalise
from escdiff.training.mini import make_tokenizer


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


def test_every_kind_of_word_is_asked_for(tmp_path):
    """Two pictures' captions are told apart by colours alone; naming asks for family and pattern as well."""
    make_still_life(tmp_path, 6, StillLifeOptions(seed=1))
    torch.manual_seed(0)
    arrays, module = StillLifeArrays(tmp_path), ClipModule(lr=1e-3, max_steps=4, words=0.5)
    pixels, ids, labels = CaptionedPictures(arrays, seed=3).__getitems__([(0, 2), (1, 5)])
    assert {kind: LABELS[kind][2][label[1]] for kind, label in labels.items()} == {
        "family": arrays.factors[5].shape.family, "pattern": arrays.factors[5].material.pattern,
        "color": arrays.factors[5].material.color, "finish": arrays.factors[5].material.finish,
        "background": arrays.factors[5].scene.background,
    }  # fmt: skip
    with torch.no_grad():
        step = module.training_step((pixels, ids, labels), 0)
        embeds = module.clip(input_ids=ids, pixel_values=normalise(pixels)).image_embeds
        named = module.name(embeds)
        alone = module.clip.get_text_features(
            **make_tokenizer()(["a photo of a mug"], return_tensors="pt")
        ).pooler_output
    assert {kind: logits.shape for kind, logits in named.items()} == {k: (2, len(LABELS[k][2])) for k in labels}
    mug = module.clip.logit_scale.exp() * torch.cosine_similarity(embeds, alone)
    assert torch.allclose(named["family"][:, LABELS["family"][2].index("mug")], mug, atol=1e-4)
    words = sum(torch.nn.functional.cross_entropy(named[kind], label) for kind, label in labels.items())
    assert torch.allclose(step["loss"], step["logs"]["contrast"] + 0.5 * words, atol=1e-5)
