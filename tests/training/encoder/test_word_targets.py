"""Target vectors of words, of phrases and of mixtures, on the tiny text encoder."""

import pytest
import torch

from escdiff.training.encoder.word_targets import WordTargets


@pytest.fixture
def targets(tiny_backbone):
    return WordTargets(tiny_backbone.prompts)


def test_a_phrase_is_spread_and_an_empty_one_does_not_count(targets):
    vectors, counted = targets(["red mug", "", ()], 2)
    assert torch.equal(vectors[0], targets.prompts.word_embedding("red mug").float())
    assert counted.tolist() == [True, False, False] and not vectors[1:].any()


def test_a_mixture_is_the_shares_of_its_words(targets):
    word = {name: targets.prompts.word_embedding(name).float().mean(0) for name in ("red", "blue", "mug")}
    (vectors,), _ = targets([({"red": 0.75, "blue": 0.25}, {"mug": 1.0})], 2)
    assert torch.allclose(vectors, torch.stack([0.75 * word["red"] + 0.25 * word["blue"], word["mug"]]))
    assert targets([({"mug": 1.0},)], 3)[0].shape == (1, 3, targets.prompts.width)


def test_a_word_of_several_tokens_lies_over_the_places_it_stands_in(targets):
    word = "checkered"
    tokens = targets.prompts.word_embedding(word).float()
    assert len(tokens) > 1
    (vectors,), _ = targets([({"mug": 1.0}, *[{word: 1.0}] * len(tokens))], 1 + len(tokens))
    assert torch.allclose(vectors[1:], tokens)
