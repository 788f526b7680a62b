"""Training of the bundled model's CLIP."""

import pytest
import torch
from omegaconf import OmegaConf

from data_prep.still_life import StillLifeOptions, make_still_life
from escdiff.data.arrays import LABELS, StillLifeArrays
from escdiff.encoder.vision import normalise
from escdiff.errors import UserError
from escdiff.still_life.world import TWO_ALIKE
from escdiff.training.clip_module import UNSAID, CaptionedPictures, ClipModule, build, export, top1
from escdiff.training.mini import make_tokenizer


@pytest.fixture(scope="module")
def arrays(tmp_path_factory) -> StillLifeArrays:
    folder = tmp_path_factory.mktemp("still_life")
    make_still_life(folder, 48, StillLifeOptions(seed=1))
    return StillLifeArrays(folder)


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


def test_every_kind_of_word_is_asked_for(arrays):
    """Two pictures' captions are told apart by colours alone; naming asks for family and pattern as well."""
    torch.manual_seed(0)
    module = ClipModule(lr=1e-3, max_steps=4, naming=0.5)
    said = [row for row, factors in enumerate(arrays.factors) if factors.material.pattern not in TWO_ALIKE][:2]
    pixels, ids, labels = CaptionedPictures(arrays, seed=3).__getitems__([(0, said[0]), (1, said[1])])
    factors = arrays.factors[said[1]]
    words = {
        "family": factors.shape.family, "pattern": factors.material.pattern, "color": factors.material.color,
        "finish": factors.material.finish, "background": factors.scene.background,
    }  # fmt: skip
    assert {kind: LABELS[kind][2][label[1]] for kind, label in labels.items()} == words
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
    naming = sum(torch.nn.functional.cross_entropy(named[kind], label) for kind, label in labels.items())
    assert torch.allclose(step["loss"], step["logs"]["contrast"] + 0.5 * naming, atol=1e-5)


def test_a_pattern_of_two_equal_colors_does_not_say_which_is_the_first(arrays):
    labels = CaptionedPictures(arrays, seed=3).__getitems__([(0, row) for row in range(48)])[2]
    alike = torch.tensor([factors.material.pattern in TWO_ALIKE for factors in arrays.factors])
    assert alike.any() and torch.equal(labels["color"] == UNSAID, alike)
    logits = torch.nn.functional.one_hot(labels["color"].clamp_min(0), len(LABELS["color"][2])).float()
    assert top1(logits, labels["color"]) == 1


def test_every_visit_has_its_own_framing(arrays):
    pictures = CaptionedPictures(arrays, seed=3)
    first, again, later = (pictures.__getitems__([(epoch, 2)])[0] for epoch in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, later)
