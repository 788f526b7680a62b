"""Layers that read another sample's text."""

import pytest
import torch
from families import make_setup, texts_read

from escdiff.backbone.family.joint_attention import Joint
from escdiff.backbone.family.lending import lend_text


def swap(batch: int) -> torch.Tensor:
    """The first reads the second's; the second its own."""
    return torch.ones(batch, dtype=torch.long)


def test_named_layers_alone_read_the_other_text(setup):
    stock, output = texts_read(setup, setup.text), setup.run(setup.text)
    name = setup.space.cells[1][0]
    with lend_text(setup.model, [name], swap):
        read = texts_read(setup, setup.text)
        assert torch.equal(read[1][0], stock[1][1])
        assert all(torch.equal(read[layer][1], stock[layer][1]) for layer in range(len(stock)))  # the lender's own
        others = range(1) if isinstance(setup.family, Joint) else [i for i in range(len(stock)) if i != 1]
        assert all(torch.equal(read[layer][0], stock[layer][0]) for layer in others)
        lent = setup.run(setup.text)
        assert not torch.equal(lent[0], output[0]) and torch.equal(lent[1], output[1])
    assert torch.equal(setup.run(setup.text), output)


@pytest.mark.parametrize("name", ["pixart", "sana"])
def test_all_layers_with_cross_attention_give_the_other_picture(name):
    transformer = make_setup(name)
    same = {name: value[:1].repeat(2, *[1] * (value.ndim - 1)) for name, value in transformer.inputs.items()}
    other = transformer.run(transformer.text, **same)[1]
    with lend_text(transformer.model, transformer.space.layer_names, swap):
        lent = transformer.run(transformer.text, **same)
    torch.testing.assert_close(lent[0], other)


def test_behind_a_block_of_a_stream_stands_its_own_text(joint):
    """What the block added to the lent text is added to the sample's own."""
    name, seen, own = joint.space.cells[0][0], {}, texts_read(joint, joint.text)[0]
    block = joint.model.get_submodule(name)

    def see(module, args, kwargs, output):
        seen.update(given=kwargs["encoder_hidden_states"], behind=output[0])

    with lend_text(joint.model, [name], swap):
        handle = block.register_forward_hook(see, with_kwargs=True)
        joint.run(joint.text)
        handle.remove()
    assert torch.equal(seen["given"], own[[1, 1]])
    torch.testing.assert_close(seen["behind"] - own, texts_read_change(joint, block, seen["given"]))


def texts_read_change(joint, block, given: torch.Tensor) -> torch.Tensor:
    """What the stock block does to a text, all else as in the model's call."""
    kept = {}
    handle = block.register_forward_pre_hook(lambda m, args, kwargs: kept.update(kwargs), with_kwargs=True)
    joint.run(joint.text)
    handle.remove()
    return type(block).forward(block, **kept | {"encoder_hidden_states": given})[0] - given
