"""Placeholders: the right vectors at the right token, every cell, each cell once; clear refusals."""

import pytest
import tiny
import torch

from escdiff.conditioning import PromptEncoder
from escdiff.conditioning.word_ids import WordIds
from escdiff.support.errors import UserError

L, S, D = 16, 1, 32


@pytest.fixture(scope="module")
def encoder(tiny_text):
    return PromptEncoder(*tiny_text)


@pytest.fixture
def shape():
    return 0.1 * torch.randn(1, L, S, 2, D, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def rows_seen(tiny_text):
    """Number of rows in every call that the text model really gets."""
    seen = []
    handle = tiny_text[1].register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    yield seen
    handle.remove()


def stock_states(tiny_text, prompts):
    tokenizer, text_encoder = tiny_text
    ids = tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        return text_encoder(ids)[0]


def test_plain_prompts_equal_the_stock_encoding(encoder, tiny_text):
    prompts = ["a photo of a mug", "", "Two  cats' NAPS, 1st try!", "word " * 200]
    states = encoder.encode_plain(prompts)
    assert states.shape == (4, 1, 1, 77, D)
    assert torch.equal(states[:, 0, 0], stock_states(tiny_text, prompts))


@pytest.mark.parametrize(
    "text",
    [
        "a photo of a {} on a table",
        "{}",
        "{}, red",
        "the {}'s colour (a {})",
        'a "{}"-like\n{}!',
        "  {}  ",
        "ein {}: größer 42",
    ],
)
def test_cutting_a_placeholder_out_keeps_all_other_tokens(encoder, tiny_text, text):
    """The ids are those of the same text with an ordinary word in the placeholder's place."""
    tokens = encoder.tokenize(text.replace("{}", "<shape>"), {"<shape>": 1})
    word = tiny_text[0]("mug", add_special_tokens=False).input_ids
    assert len(word) == 1
    whole = tiny_text[0](text.replace("{}", "mug"), padding="max_length", max_length=77).input_ids
    ids = list(tokens.ids)
    for _, position in tokens.slots:
        ids[position] = word[0]
    assert ids == whole and len(tokens.slots) == text.count("{}")


def test_the_vectors_of_a_word_act_as_the_word(encoder, tiny_text):
    vectors = {"<shape>": encoder.word_embedding("red mug")[None, None, None]}
    states = encoder.encode(["a photo of a <shape> on a table"], vectors)
    assert vectors["<shape>"].shape == (1, 1, 1, 2, D)
    assert torch.equal(states[:, 0, 0], stock_states(tiny_text, ["a photo of a red mug on a table"]))


def test_batched_equals_one_by_one(encoder, shape):
    appearance = 0.1 * torch.randn(3, L, 1, 1, D)
    prompts = ["a <shape> in <appearance>", "<appearance> only", "nothing at all"]
    batched = encoder.encode(prompts, {"<shape>": shape, "<appearance>": appearance})
    assert batched.shape == (3, L, S, 77, D)
    for b, prompt in enumerate(prompts):
        for layer in range(L):
            cell = {
                "<shape>": shape[:, layer : layer + 1],
                "<appearance>": appearance[b : b + 1, layer : layer + 1],
            }
            single = encoder.encode([prompt], cell)
            torch.testing.assert_close(batched[b, layer, 0], single[0, 0, 0], atol=1e-6, rtol=0)


def test_one_call_encodes_equal_cells_once(encoder, shape, rows_seen):
    batch = torch.randn(2, L, S, 1, D)
    for prompts, vectors, rows in [
        (["a mug", "a mug", ""], {}, 2),
        (["a <shape>"], {"<shape>": shape}, 16),
        (["a <shape>", "a mug", "a mug"], {"<shape>": shape}, 17),
        (["a <shape>", "a <shape>"], {"<shape>": shape}, 16),
        (["a <shape>", "a <shape>"], {"<shape>": batch}, 32),
        (["a <shape>", "a <shape>"], {"<shape>": batch[:, :1]}, 2),
        (["a <shape>"], {"<shape>": shape[:, :1].expand(1, L, 10, 2, D)}, 1),
        (["a <shape>"], {"<shape>": shape[:, :1].half().expand(1, L, 10, 2, D)}, 1),
        (["a <shape> <appearance>"], {"<shape>": shape, "<appearance>": torch.randn(1, 1, 4, 1, D)}, 64),
        (["a <shape>", "<appearance>"], {"<shape>": shape, "<appearance>": torch.randn(1, 1, 4, 1, D)}, 20),
    ]:
        rows_seen.clear()
        encoder.encode(prompts, vectors)
        assert rows_seen == [rows]


def test_stages_and_layers_land_in_their_cells(encoder):
    layered, staged = 0.1 * torch.randn(1, 3, 1, 1, D), 0.1 * torch.randn(1, 1, 2, 1, D)
    prompts = ["a <shape> and <appearance>", "<appearance>", "<shape>"]
    grid = encoder.encode(prompts, {"<shape>": layered, "<appearance>": staged})
    assert grid.shape == (3, 3, 2, 77, D)
    for layer in range(3):
        for stage in range(2):
            cell = {
                "<shape>": layered[:, layer : layer + 1],
                "<appearance>": staged[:, :, stage : stage + 1],
            }
            torch.testing.assert_close(grid[:, layer, stage], encoder.encode(prompts, cell)[:, 0, 0], atol=1e-6, rtol=0)


def test_tied_layers_are_textual_inversion(encoder, shape):
    tied = encoder.encode(["a photo of <shape>"], {"<shape>": shape[:, :1]})
    xti = encoder.encode(["a photo of <shape>"], {"<shape>": shape[:, :1].repeat(1, L, 1, 1, 1)})
    torch.testing.assert_close(xti, tied.expand_as(xti), atol=1e-6, rtol=0)


def test_gradients_reach_each_cells_own_vectors(encoder, shape):
    shape.requires_grad_()
    grid = encoder.encode(["a <shape> next to another <shape>", "a mug"], {"<shape>": shape})
    grid[0, 5].square().sum().backward()
    per_cell = shape.grad.abs().sum(dim=(0, 2, 3, 4))
    assert per_cell[5] > 0 and per_cell.sum() == per_cell[5]
    assert (shape.grad[0, 5, 0].abs().sum(1) > 0).all()  # both vectors of the placeholder
    assert not encoder.encode(["a mug"]).requires_grad


def test_the_hook_is_gone_even_after_a_failure(encoder, tiny_text, shape):
    expected = encoder.encode_plain(["a mug"])
    embeddings = tiny_text[1].get_input_embeddings()
    encoder.encode(["a <shape>"], {"<shape>": shape})
    handle = embeddings.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        encoder.encode(["a <shape>"], {"<shape>": shape})
    handle.remove()
    assert torch.equal(encoder.encode_plain(["a mug"]), expected)


def test_unknown_placeholder_names_the_known_ones(encoder, shape):
    with pytest.raises(UserError, match="unknown placeholder <form>; known here: <shape>"):
        encoder.encode(["a <form>"], {"<shape>": shape})
    with pytest.raises(UserError, match="unknown placeholder <shape>; known here: none"):
        encoder.encode_plain(["a <shape>"])
    encoder.encode_plain(["I <3 you", "a < b > c", "<|endoftext|>"])  # not placeholders


def test_required_placeholder_missing(encoder, shape):
    with pytest.raises(UserError, match="'a mug' lacks the placeholder <shape>"):
        encoder.encode(["a <shape>", "a mug"], {"<shape>": shape}, required=["<shape>"])


def test_placeholder_must_end_before_the_last_token(encoder, shape):
    fits = encoder.tokenize("word " * 73 + "<shape> and more", {"<shape>": 2})
    assert fits.slots == (("<shape>", 74),) and len(fits.ids) == 77 and fits.ids[76] == 49407
    with pytest.raises(UserError, match="<shape> ends at token 76 .* up to token 75"):
        encoder.encode(["word " * 74 + "<shape>"], {"<shape>": shape})


@pytest.mark.parametrize("size", [(1, L, S, 2, 768), (3, L, S, 2, D), (L, S, 2, D), (1, L, S, 0, D)])
def test_vectors_that_do_not_fit_are_refused(encoder, size):
    with pytest.raises(UserError, match="vectors of <shape> have shape"):
        encoder.encode(["a <shape>", "b"], {"<shape>": torch.zeros(size)})


def test_vectors_of_different_spaces_are_refused(encoder, shape):
    with pytest.raises(UserError, match="different grids"):
        encoder.encode(["a <shape>"], {"<shape>": shape, "<appearance>": torch.zeros(1, 11, 1, 1, D)})


def test_one_string_is_no_list(encoder):
    with pytest.raises(UserError, match="expected a list"):
        encoder.encode("a mug")
    assert encoder.encode([]).shape == (0, 1, 1, 77, D)


def test_word_embeddings(encoder, tiny_text):
    weight = tiny_text[1].get_input_embeddings().weight
    ids = tiny_text[0]("red mug", add_special_tokens=False).input_ids
    assert torch.equal(encoder.word_embedding("red mug"), weight[ids])
    mean = encoder.word_embedding("red mug", num_vectors=3)
    assert mean.shape == (3, D)
    torch.testing.assert_close(mean[2], weight[ids].mean(0))
    assert encoder.embedding_scale == pytest.approx(weight.norm(dim=1).mean().item(), rel=1e-3)
    with pytest.raises(UserError, match="has no token"):
        encoder.word_embedding("  ")


def test_a_word_added_to_the_tokenizer_is_no_placeholder(tiny_text):
    import copy

    tokenizer = copy.deepcopy(tiny_text[0])
    tokenizer.add_tokens("<cat-toy>")
    tokens = PromptEncoder(tokenizer, tiny_text[1]).tokenize("a <cat-toy> like <shape>", {"<shape>": 1})
    assert tokens.ids[2] == tokenizer.convert_tokens_to_ids("<cat-toy>") and len(tokens.slots) == 1


LATE = "a photo of " + "a very " * 12 + "old <shape> on a table"


@pytest.fixture
def seen(tiny_text):
    """(rows, positions) of every call that the text model really gets."""
    seen = []
    handle = tiny_text[1].register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    yield seen
    handle.remove()


def test_equal_beginnings_are_encoded_once(encoder, tiny_text, shape, seen):
    """What the cells of a prompt share costs one row; states and gradients are those of encoding every cell."""
    prompts = [LATE, LATE.replace("table", "chair"), LATE.replace("photo", "picture")]
    shape = shape.expand(3, -1, -1, -1, -1).clone().requires_grad_()
    grid = encoder.encode(prompts, {"<shape>": shape})
    start = encoder.tokenize(LATE, {"<shape>": 2}).slots[0][1]
    assert seen == [(2, start), (3 * L, 77 - start)]
    weights = torch.randn(grid.shape, generator=torch.Generator().manual_seed(0))  # a sum of squares hardly moves
    grad = torch.autograd.grad((grid * weights).sum(), shape)[0]
    cells = [(b, layer) for b in range(3) for layer in range(L)]
    alone = [encoder.encode([prompts[b]], {"<shape>": shape[b : b + 1, i : i + 1]})[0, 0] for b, i in cells]
    assert seen[2:] == [(1, 77)] * 3 * L  # and the text encoder is as it was
    alone = torch.stack(alone).unflatten(0, (3, L))
    assert torch.allclose(grid, alone, atol=1e-6)
    assert torch.allclose(grad, torch.autograd.grad((alone * weights).sum(), shape)[0], atol=1e-5)


def test_layers_left_out_at_the_end_share_beginnings_too(encoder, shape):
    together = encoder.encode_pooled([LATE], {"<shape>": shape}, skip=1)[0]
    alone = [encoder.encode_pooled([LATE], {"<shape>": shape[:, i : i + 1]}, skip=1)[0] for i in range(L)]
    assert torch.allclose(together, torch.cat(alone, 1), atol=1e-6)


def test_a_beginning_of_one_mark_is_not_worth_two_calls(encoder, shape, seen):
    encoder.encode(["<shape>"], {"<shape>": shape})
    assert seen == [(L, 77)]


def test_words_of_textual_inversions_that_come_and_go_are_read_as_words():
    pipeline = tiny.make_backbone().pipeline()
    word_ids = WordIds(pipeline.tokenizer)
    for token in ("<aaa>", "<bbb>"):  # as many words as before
        pipeline.load_textual_inversion(torch.randn(1, D), token=token)
        assert word_ids(f"a {token} mug") == pipeline.tokenizer(f"a {token} mug").input_ids[1:-1]
        assert len(word_ids(token)) == 1
        pipeline.unload_textual_inversion()
    assert len(word_ids("<bbb>")) > 1
