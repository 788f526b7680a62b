"""How residuals travel behind a text, and what is refused."""

import pytest
import torch
from families import make_residuals, make_text

from escdiff.backbone.family import Residuals
from escdiff.backbone.family.residuals import read_rows, write_rows
from escdiff.support.errors import UserError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("layers", "stages", "width"), [(1, 1, 1), (3, 2, 24), (57, 1, 8)])
def test_what_is_written_is_read(layers, stages, width, dtype):
    text = make_text(16, 300).to(dtype)
    given = make_residuals(layers, width, stages=stages)
    given = Residuals(given.values.to(dtype), torch.tensor([[0, 299], [-1, 256]]))
    read_text, read = read_rows(write_rows(text, given), width)
    assert torch.equal(read_text, text) and torch.equal(read.values, given.values)
    assert torch.equal(read.positions, given.positions)


def test_a_plain_text_is_no_packed_one():
    assert read_rows(make_text(16, 40), 8) is None
    assert read_rows(make_text(4, 40), 8) is None


def test_one_row_serves_a_batch():
    text, given = make_text(16, 9, batch=3), make_residuals(2, 8, batch=1)
    _, read = read_rows(write_rows(text, given), 8)
    assert torch.equal(read.values, given.values.expand(3, -1, -1, -1, -1))


@pytest.mark.parametrize(("make", "sentence"), [
    (lambda: Residuals(torch.zeros(1, 2, 1, 3), torch.zeros(1, 3)), "expected .batch, layers, stages"),
    (lambda: Residuals(torch.zeros(1, 2, 1, 3, 4), torch.zeros(1, 2)), r"at positions of shape \(1, 2\)"),
    (lambda: Residuals(torch.zeros(1, 257, 1, 1, 4), torch.zeros(1, 1)), "at most 256"),
    (lambda: write_rows(make_text(16, 9, batch=3), make_residuals(2, 8)), "of 2 prompts were given for 3"),
    (lambda: write_rows(make_text(16, 4), make_residuals(2, 8)), "at token 4 was given for a text of 4 tokens"),
    (lambda: write_rows(make_text(6, 9), make_residuals(2, 8)), "text of width 6"),
    (lambda: read_rows(write_rows(make_text(16, 9), make_residuals(2, 8)), 800), "packed for another model"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(make, sentence):
    with pytest.raises(UserError, match=sentence):
        make()


def test_a_wrong_pairing_names_both_sides(setup):
    other = make_residuals(setup.space.num_layers + 1, 5)
    ours = f"{setup.space.num_layers} layers, 1 stages and width {setup.family.layer_width(setup.model)}"
    with pytest.raises(
        UserError, match=rf"{setup.space.num_layers + 1} layers, .* width 5 .*{setup.family.name}.*{ours}"
    ):
        setup.pack(other)
    with pytest.raises(UserError, match=rf"text of shape .*{setup.family.text_width(setup.model)}"):
        setup.pack(setup.residuals, setup.text[..., 1:])
    with pytest.raises(UserError, match="token 999"):
        setup.pack(Residuals(setup.residuals.values, setup.residuals.positions + 996 - 1))


def test_a_text_packed_for_another_space_is_refused_in_the_call(transformer):
    width = transformer.family.layer_width(transformer.model)
    other = write_rows(transformer.text, make_residuals(transformer.space.num_layers - 1, width))
    count = transformer.space.num_layers
    with transformer.attach(), pytest.raises(UserError, match=f"for {count - 1} layers .* attached with {count} and 1"):
        transformer.run(other)


def test_arguments_along_the_text_may_have_its_packed_length(transformer):
    """Pipelines make masks and position ids as long as the prompt's tensor."""
    packed = transformer.pack(transformer.residuals)
    beyond = packed.shape[1] - transformer.text.shape[1]
    longer = {}
    for name, axis in transformer.family.along_text:
        own = transformer.inputs[name]
        shape = list(own.shape)
        shape[axis] = beyond
        longer[name] = torch.cat([own, torch.ones(shape, dtype=own.dtype)], axis)
    with transformer.attach():
        assert torch.equal(transformer.run(packed, **longer), transformer.run(packed))
    assert (transformer.name == "sd3") == (not longer)


def test_positional_arguments_serve_as_well(transformer):
    text, packed = transformer.text, transformer.pack(transformer.residuals)
    inputs = dict(transformer.inputs)
    hidden = inputs.pop("hidden_states")
    with transformer.attach():
        assert torch.equal(transformer.model(hidden, packed, **inputs).sample, transformer.run(packed))
        assert torch.equal(transformer.model(hidden, text, **inputs).sample, transformer.run(text))


def test_a_failed_call_leaves_nothing_behind(transformer):
    stock = transformer.run(transformer.text)
    with transformer.attach():
        with pytest.raises(Exception):  # noqa: B017 - of torch
            transformer.run(transformer.pack(transformer.residuals), hidden_states=torch.zeros(2, 99, 3, 3))
        assert torch.equal(transformer.run(transformer.text), stock)
