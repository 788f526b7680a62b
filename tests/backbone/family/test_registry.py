"""Which family serves a model."""

import diffusers
import pytest
import torch
from families import CASES, build
from tiny import make_backbone
from torch import nn

from escdiff.backbone.family import FAMILIES, family_of, register
from escdiff.support.errors import UserError


@pytest.mark.parametrize("name", CASES)
def test_a_model_has_a_family(name):
    model = build(name)
    family = family_of(model)
    assert family is FAMILIES["sd" if name == "sdxl" else name]
    assert family.layers(model) == family.space(model).layer_names
    assert all(isinstance(model.get_submodule(layer), nn.Module) for layer in family.layers(model))


def test_every_class_that_a_family_names_is_one_of_diffusers():
    for family in FAMILIES.values():
        for name in (*family.models, *family.pipelines):
            assert family_of(name) is family and hasattr(diffusers, name)


def test_a_pipeline_has_the_family_of_its_model():
    assert family_of(make_backbone().pipeline()).name == "sd"


def test_compiled_models_too():
    assert family_of(torch.compile(build("pixart"))).name == "pixart"


def test_others_are_refused():
    with pytest.raises(UserError, match="a Linear was given; expected one of UNet2DConditionModel, PixArt.*families"):
        family_of(nn.Linear(1, 1))


def test_a_name_is_registered_once():
    before = dict(FAMILIES)
    with pytest.raises(UserError, match="shares .* with 'flux'"):
        register(FAMILIES["flux"])
    assert before == FAMILIES


def test_entering_is_what_the_model_does(transformer):
    """`enter` gives what the first block reads of a stock text."""
    first, seen = transformer.model.get_submodule(transformer.space.layer_names[0]), []
    names = ("hidden_states", "attention_mask", "encoder_hidden_states")  # Sana gives its blocks positional arguments

    def see(module, args, kwargs):
        seen.append((dict(zip(names, args, strict=False)) | kwargs)["encoder_hidden_states"])

    first.register_forward_pre_hook(see, with_kwargs=True)
    transformer.run(transformer.text)
    entered = transformer.family.enter(transformer.model, transformer.text)
    assert torch.equal(entered, seen[0])
    assert entered.shape[-1] == transformer.family.layer_width(transformer.model)
