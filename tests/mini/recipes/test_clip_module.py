"""Training of the bundled model's CLIP."""

import pytest
import torch

from escdiff.encoder.vision import normalise
from escdiff.mini.data.arrays import LABELS, UNNAMED, StillLifeArrays
from escdiff.mini.data.still_life import StillLifeOptions, make_still_life
from escdiff.mini.parts import make_tokenizer
from escdiff.mini.recipes import degrees
from escdiff.mini.recipes.clip import (
    INSTANCES,
    NAMED,
    CaptionedPictures,
    ClipModule,
    GroupSampler,
    build,
    export,
    top1,
)
from escdiff.mini.world import words
from escdiff.mini.world.captions import sentence
from escdiff.mini.world.world import TWO_ALIKE
from escdiff.support.config.train import TrainConfig
from escdiff.support.errors import UserError


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
    with pytest.raises(UserError, match="export_text=false given without init"):
        build(TrainConfig(export_text=False))


def test_every_kind_of_word_is_asked_for(arrays):
    """Two pictures' captions are told apart by colours alone; naming asks for family and pattern as well."""
    torch.manual_seed(0)
    module = ClipModule(lr=1e-3, max_steps=4, naming=0.5)
    said = [row for row, factors in enumerate(arrays.factors) if factors.material.pattern not in TWO_ALIKE][:2]
    pixels, ids, labels = CaptionedPictures(arrays, seed=3).__getitems__([(0, said[0]), (1, said[1])])
    factors = arrays.factors[said[1]]
    shown = {
        "family": factors.shape.family, "pattern": factors.material.pattern, "color": factors.material.color,
        "finish": factors.material.finish, "background": factors.scene.background,
    }  # fmt: skip
    assert {kind: LABELS[kind][2][labels[kind][1]] for kind in NAMED} == shown
    with torch.no_grad():
        step = module.training_step((pixels, ids, labels), 0)
        embeds = module.clip(input_ids=ids, pixel_values=normalise(pixels)).image_embeds
        named = module.name(embeds, module.words(), labels)
        alone = module.clip.get_text_features(
            **make_tokenizer()(["a photo of a mug"], return_tensors="pt")
        ).pooler_output
    shapes = {k: (2, len(LABELS[k][2])) for k in NAMED} | dict.fromkeys(degrees.OF, (2, 5))
    assert {kind: logits.shape for kind, logits in named.items()} == shapes
    mug = module.clip.logit_scale.exp() * torch.cosine_similarity(embeds, alone)
    assert torch.allclose(named["family"][:, LABELS["family"][2].index("mug")], mug, atol=1e-4)
    targets = {kind: labels[kind] for kind in NAMED} | {kind: labels[kind][:, 1] for kind in degrees.OF}
    naming = sum(
        torch.nn.functional.cross_entropy(named[kind], target)
        for kind, target in targets.items() if (target != UNNAMED).any()
    )  # fmt: skip
    assert torch.allclose(step["loss"], step["logs"]["contrast"] + 0.5 * naming, atol=1e-5)


def test_a_pattern_of_two_equal_colors_does_not_say_which_is_the_first(arrays):
    labels = CaptionedPictures(arrays, seed=3).__getitems__([(0, row) for row in range(48)])[2]
    alike = torch.tensor([factors.material.pattern in TWO_ALIKE for factors in arrays.factors])
    assert alike.any() and torch.equal(labels["color"] == UNNAMED, alike)
    logits = torch.nn.functional.one_hot(labels["color"].clamp_min(0), len(LABELS["color"][2])).float()
    assert top1(logits, labels["color"]) == 1


def test_every_visit_has_its_own_framing(arrays):
    pictures = CaptionedPictures(arrays, seed=3)
    first, again, later = (pictures.__getitems__([(epoch, 2)])[0] for epoch in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, later)


def test_degrees_are_asked_of_the_word_that_the_picture_shows(arrays):
    """The question "how tall is this mug" has the five captions of mugs, whose middle one says no degree."""
    torch.manual_seed(0)
    module = ClipModule(lr=1e-3, max_steps=4, naming=1.0)
    pictures = CaptionedPictures(arrays, seed=3)
    row = next(i for i, f in enumerate(arrays.factors) if f.shape.family in words.SHAPE_TRAITS)
    pixels, _, labels = pictures.__getitems__([(0, row)])
    shape = arrays.factors[row].shape
    assert labels["trait1"][0, 1] == words.degree(shape.params[1])
    said = [words.SHAPE_TRAITS[shape.family][1].phrase(degree) for degree in range(5)]
    captions = [sentence({"family": shape.family} | ({"trait1": word} if word else {})) for word in said]
    with torch.no_grad():
        image = module.clip.get_image_features(pixel_values=normalise(pixels)).pooler_output
        ids = make_tokenizer()(captions, padding=True, return_tensors="pt").input_ids
        texts = module.clip.get_text_features(input_ids=ids).pooler_output
        image = torch.nn.functional.normalize(image, dim=-1)
        found = module.name(image, module.words(), labels)["trait1"]
    expected = module.clip.logit_scale.exp() * torch.cosine_similarity(image, texts)
    assert torch.allclose(found[0], expected.detach(), atol=1e-4)


def test_a_batch_holds_whole_groups_and_names_their_instances(arrays):
    visits = next(iter(GroupSampler(len(arrays), 32, seed=0)))
    labels = CaptionedPictures(arrays, seed=3).__getitems__(visits)[2]
    for name in INSTANCES:
        numbers, counts = labels[name].unique(return_counts=True)
        assert len(numbers) == 8 and (counts == 4).all()
    with pytest.raises(UserError, match="whole groups of 16"):
        GroupSampler(len(arrays), 24, seed=0)


def test_instances_are_told_apart_by_the_vision_tower_alone(arrays):
    torch.manual_seed(0)
    module = ClipModule(lr=1e-3, max_steps=4, instances=1.0)
    batch = CaptionedPictures(arrays, seed=3).__getitems__([(0, row) for row in range(16)])
    step = module.training_step(batch, 0)
    step["loss"].backward()
    assert all(head.weight.grad.abs().sum() > 0 for head in module.instances.values())
    assert step["loss"].item() == pytest.approx(
        sum(step["logs"][name].item() for name in ("contrast", *(f"same_{name}" for name in INSTANCES))), abs=1e-4
    )
