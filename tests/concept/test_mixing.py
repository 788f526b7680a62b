"""The shape of one concept with the appearance of another: by hand, by gates, by slider."""

import pytest
import torch

from escdiff.concept import Concept
from escdiff.concept.mixing import mix, shape_share, split
from escdiff.conditioning import ConditioningSpace
from escdiff.support.errors import UserError

K, D = 1, 8


@pytest.fixture(scope="module")
def p_plus(tiny_unet):
    return ConditioningSpace.p_plus(tiny_unet)


def make(space, seed, attributes=("concept",), gates=False):
    generator = torch.Generator().manual_seed(seed)
    size = (space.num_layers, space.num_stages)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return Concept(
        {a: draw(*size, K, D) for a in attributes}, {a: draw(K, D) for a in attributes}, space, "tiny", "abc",
        gates={a: torch.rand(size, generator=generator) for a in attributes} if gates else {},
    )  # fmt: skip


def test_by_hand(p_plus):
    a, b = make(p_plus, 0), make(p_plus, 1)
    mixed = mix(a, b).vectors["concept"]
    assert torch.equal(mixed[4:9], a.vectors["concept"][4:9])
    outside = [0, 1, 2, 3, *range(9, 16)]
    assert torch.equal(mixed[outside], b.vectors["concept"][outside])


def test_by_slider(p_plus):
    a, b = make(p_plus, 0), make(p_plus, 1)
    assert torch.equal(mix(a, b, 0).vectors["concept"], b.vectors["concept"])
    assert torch.equal(mix(a, b, 1.0).vectors["concept"], a.vectors["concept"])
    shares = torch.stack([shape_share(p_plus, x)[:, 0] for x in (0.1, 0.3, 0.5, 0.7)])
    assert (shares[1:] >= shares[:-1]).all() and torch.allclose(shares.mean(1), torch.tensor([0.1, 0.3, 0.5, 0.7]))
    assert shares[0, 6] == 1 and shares[1, 4:9].sum() > 4  # from the middle outwards


def test_by_gates(p_plus):
    a, b = make(p_plus, 0), make(p_plus, 1)
    gates = {"shape": torch.full((16, 1), 0.25), "appearance": torch.full((16, 1), 0.75)}
    gates["shape"][3], gates["appearance"][3] = 1.0, 0.0
    mixed = mix(a, b, "gates", gates).vectors["concept"]
    assert torch.allclose(mixed[3], a.vectors["concept"][3])
    assert torch.allclose(mixed[0], torch.lerp(b.vectors["concept"][0], a.vectors["concept"][0], 0.25))
    with pytest.raises(UserError, match="learned gates"):
        mix(a, b, "gates")


def test_split_leaves_the_word_elsewhere(p_plus):
    concept = make(p_plus, 0)
    parts = split(concept)
    own, word = concept.vectors["concept"], concept.anchors["concept"]
    assert parts.attributes == ("shape", "appearance", "concept")
    assert torch.equal(parts.vectors["shape"][4:9], own[4:9]) and torch.equal(parts.vectors["appearance"][0], own[0])
    assert (parts.vectors["shape"][0] == word).all() and (parts.vectors["appearance"][6] == word).all()
    assert torch.equal(parts.placeholders()["<concept>"][0], own)


def test_one_cell_cannot_be_split_and_ours_needs_none(tiny_unet, p_plus):
    concept = make(ConditioningSpace.p(tiny_unet), 0)
    parts = split(concept)
    assert torch.equal(parts.vectors["shape"], parts.vectors["appearance"])
    both = mix(concept, make(concept.space, 1))
    assert both.attributes == ("shape", "appearance")
    ours = make(p_plus, 0, ("shape", "appearance"), gates=True)
    assert split(ours) is ours
    other = make(p_plus, 1, ("shape", "appearance"))
    mixed = mix(ours, other)
    assert torch.equal(mixed.vectors["shape"], ours.vectors["shape"])
    assert torch.equal(mixed.vectors["appearance"], other.vectors["appearance"])


def test_what_has_its_attribute_is_taken_as_it_is(p_plus):
    shape, appearance, whole = (make(p_plus, 0, (name,)) for name in ("shape", "appearance", "concept"))
    for how in ("hand", 0.3):
        mixed = mix(shape, appearance, how)
        assert torch.equal(mixed.vectors["shape"], shape.vectors["shape"])
        assert torch.equal(mixed.vectors["appearance"], appearance.vectors["appearance"])
    mixed = mix(shape, whole)
    assert torch.equal(mixed.vectors["shape"], shape.vectors["shape"])
    assert torch.equal(mixed.vectors["appearance"], split(whole).vectors["appearance"])
    with pytest.raises(UserError, match="shape of its reference alone"):
        mix(shape, shape)


def test_mattes_tokens_take_their_roles(p_plus):
    matte = make(p_plus, 0, ("color", "style", "object", "layout"))
    parts = split(matte)
    assert torch.equal(parts.vectors["shape"], matte.vectors["object"])
    assert parts.vectors["appearance"].shape[2] == 2 and parts.vectors["concept"].shape[2] == 4


def test_stages_and_groups_of_layers(tiny_unet, p_plus):
    names = p_plus.layer_names
    space = ConditioningSpace((names[3:6], (*names[:3], *names[6:])), (0, 500, 1000))
    share = shape_share(space, "hand")
    assert share.shape == (2, 2) and torch.allclose(share[:, 0], torch.tensor([2 / 3, 3 / 13]))


@pytest.mark.parametrize("how", ["middle", -0.1, 1.5, None])
def test_other_words_are_refused(p_plus, how):
    with pytest.raises(UserError, match="mix="):
        mix(make(p_plus, 0), make(p_plus, 1), how)


def test_different_spaces_are_refused(tiny_unet, p_plus):
    with pytest.raises(UserError, match="one backbone"):
        mix(make(p_plus, 0), make(ConditioningSpace.build(tiny_unet, "each", 2), 1))


def test_image_tokens_of_both_or_their_mean(tiny_unet):
    a, b = (make(ConditioningSpace.p(tiny_unet), seed) for seed in (0, 1))
    for concept, value in ((a, 0.0), (b, 1.0)):
        concept.extras = {"image_embeds": torch.full((3, 2), value), "one": torch.full((2,), value)}
    mixed = mix(a, b).extras
    assert mixed["image_embeds"].mean(1).tolist() == [0, 0, 0, 1, 1, 1] and mixed["one"].tolist() == [0.5, 0.5]


def test_a_transformers_layers_are_split_in_their_own_order():
    space = ConditioningSpace(tuple((f"transformer_blocks.{i}",) for i in range(8)))
    assert shape_share(space, "hand")[:, 0].tolist() == [0, 0, 1, 1, 1, 0, 0, 0]  # 4 to 8 of 16
    assert shape_share(space, 1.0).min() == 1
