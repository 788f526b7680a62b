"""Threads that share a text encoder and a tokenizer: what one encodes never shows in another's prompt."""

import threading

import tiny
import torch

from escdiff.conditioning import PromptEncoder
from escdiff.conditioning.word_ids import WordIds


def run_together(*jobs):
    """Each job over and over in a thread of its own, until all have run ten times; what went wrong."""
    wrong, counts, enough = [], [0] * len(jobs), threading.Barrier(len(jobs))

    def work(number):
        try:
            enough.wait(60)
            while min(counts) < 10:
                jobs[number]()
                counts[number] += 1
        except BaseException as error:
            wrong.append(error)
            counts[:] = [10] * len(jobs)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wrong


def test_prompts_of_two_concepts_and_stock_ones_at_once(tiny_backbone):
    """As a server does: one set of weights, and the stock pipeline's own way to tokenize between ours."""
    prompts, encoder = PromptEncoder(tiny_backbone.tokenizer, tiny_backbone.text_encoder), tiny_backbone.text_encoder
    ids = torch.tensor([prompts.tokenize("a photo of a red mug on a white background", {}).ids])
    words = ({"<x>": torch.full((1, 16, 1, 2, tiny.WIDTH), value)} for value in (0.1, -0.3))
    jobs = []
    with torch.no_grad():
        stock = encoder(ids)[0]
        hooks = [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in encoder.modules()]
        for vectors in words:
            expected = prompts.encode(["a photo of a <x>"], vectors)
            jobs.append(lambda v=vectors, e=expected: same(prompts.encode(["a photo of a <x>"], v), e))
    jobs.append(lambda: same(encoder(ids)[0], stock))
    assert run_together(*map(without_gradients, jobs)) == []
    assert hooks == [(dict(m._forward_hooks), dict(m._forward_pre_hooks)) for m in encoder.modules()]


def same(given, expected):
    torch.testing.assert_close(given, expected)


def without_gradients(job):
    def work():
        with torch.no_grad():  # which is each thread's own
            job()

    return work


def test_our_ids_are_the_tokenizers_and_leave_its_settings():
    tokenizer = tiny.make_tokenizer()
    ids = WordIds(tokenizer)
    texts = (
        "a photo of a red mug, café on 3 Beaches",
        "猫 über naïve",
        "a <|endoftext|> b !!! <cat-toy> x",
        "it's",
        "A\nB",
    )
    for added in ([], ["<cat-toy>", "<x>"]):
        tokenizer.add_tokens(added)
        expected = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
        tokenizer(texts[0], padding="max_length", max_length=9, truncation=True)  # as the stock pipeline, from now on
        settings = tokenizer.backend_tokenizer.padding, tokenizer.backend_tokenizer.truncation
        assert [ids(text) for text in texts] == expected
        assert (tokenizer.backend_tokenizer.padding, tokenizer.backend_tokenizer.truncation) == settings


def test_an_encoder_whose_attention_is_not_torchs_own_encodes_whole_rows(tiny_backbone):
    vectors = {"<x>": 0.1 * torch.randn(1, 16, 1, 2, tiny.WIDTH)}
    expected = tiny_backbone.prompts.encode(["a photo of a <x>"], vectors)
    eager = tiny.make_text_encoder()
    eager.load_state_dict(tiny_backbone.text_encoder.state_dict())
    eager.set_attn_implementation("eager")
    found = PromptEncoder(tiny_backbone.tokenizer, eager).encode(["a photo of a <x>"], vectors)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
