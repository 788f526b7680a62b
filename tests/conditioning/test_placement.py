"""Residuals behind the text encoder: nothing at zero, only their own cell and position, one row per prompt."""

import pytest
import torch

from escdiff.conditioning import PromptEncoder
from escdiff.conditioning.placement import place

L, S, D = 16, 2, 32
PROMPTS = ["a photo of a <shape> on a table", "two <appearance> <shape>", "a plain mug"]


@pytest.fixture(scope="module")
def encoder(tiny_text):
    return PromptEncoder(*tiny_text)


def pairs(encoder, spread=1.0, batch=1):
    """Placeholder -> pairs for the words "red" and "mug", the residuals random."""
    generator, made = torch.Generator().manual_seed(0), {}
    for name, word, count in (("<shape>", "mug", 1), ("<appearance>", "red", 2)):
        words = encoder.word_embedding(word, count)
        residual = spread * torch.randn(batch, L, S, count, D, generator=generator)
        made[name] = place(words + residual, words, "states")
        assert made[name].shape == (batch, L, S, count, 2, D)
    return made


def test_zero_residuals_are_the_anchor_words_exactly(encoder):
    grid = encoder.encode(PROMPTS, pairs(encoder, spread=0.0))
    plain = encoder.encode_plain(["a photo of a mug on a table", "two red red mug", "a plain mug"])
    assert grid.shape == (3, L, S, 77, D) and torch.equal(grid, plain.expand_as(grid))


@pytest.mark.parametrize("batch", [1, 3])
def test_residuals_are_added_where_they_stand_and_nowhere_else(encoder, batch):
    values = pairs(encoder, batch=batch)
    added = encoder.encode(PROMPTS, values) - encoder.encode(PROMPTS, pairs(encoder, 0.0, batch))
    expected = torch.zeros_like(added)
    for sample, name, position in ((0, "<shape>", 5), (1, "<appearance>", 2), (1, "<shape>", 4)):
        value = values[name][min(sample, batch - 1)]
        expected[sample, :, :, position : position + value.shape[2]] = value[..., 1, :]
    torch.testing.assert_close(added, expected, atol=1e-5, rtol=0)
    assert torch.equal(added == 0, expected == 0)


def test_the_text_encoder_reads_one_row_per_prompt(encoder, tiny_text):
    seen = []
    handle = tiny_text[1].register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    encoder.encode(PROMPTS, pairs(encoder))
    handle.remove()
    assert seen == [3]


def test_gradients_reach_a_cells_own_residual_only(encoder):
    words = encoder.word_embedding("mug")
    vectors = (words + torch.randn(1, L, S, 1, D)).requires_grad_()
    grid = encoder.encode(["a <shape>, large"], {"<shape>": place(vectors, words, "states")})
    grid[0, 3, 1].square().sum().backward()
    reached = vectors.grad.abs().sum((0, 3, 4)) > 0
    assert reached.nonzero().tolist() == [[3, 1]]
    torch.testing.assert_close(vectors.grad[0, 3, 1, 0], 2 * grid[0, 3, 1, 2].detach())  # not through the tower


def test_words_and_states_go_together_in_one_prompt(encoder):
    word = {"<shape>": torch.randn(1, L, 1, 2, D) * 0.1}
    state = {"<appearance>": pairs(encoder)["<appearance>"]}
    text = ["a <shape> with <appearance>"]
    grid = encoder.encode(text, word | state)
    neutral = {"<appearance>": encoder.word_embedding("red", 2)[None, None, None]}
    difference = grid - encoder.encode(text, word | neutral)
    assert set(difference.abs().sum((0, 1, 2, 4)).nonzero().flatten().tolist()) == {5, 6}
    assert encoder.encode([], word | state).shape == (0, L, S, 77, D)
