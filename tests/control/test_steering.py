"""CONFORM and boxes: what one update is, by plain lines; and what they refuse."""

import pytest
import tiny
import torch
from call import hooks, make_pipeline, paint

from escdiff.control import controlled
from escdiff.control.boxes import Boxes, draw, parse_boxes
from escdiff.control.conform import Conform
from escdiff.control.maps import AttentionMaps
from escdiff.control.objectives import contrast, smooth
from escdiff.support.errors import UserError

PROMPT = "a red mug and a blue chair"
GROUPS = [[2, 3], [6, 7]]  # red mug; blue chair


@pytest.fixture(scope="module")
def pipeline(tiny_backbone):
    return make_pipeline(tiny.copied(tiny_backbone))


def plain_update(pipeline, latents, timestep, loss, size):
    """Latents after one step of descent, and the maps at the point where the gradient was taken."""
    states = pipeline.encode_prompt(PROMPT, "cpu", 1, False)[0]
    x = latents.clone().requires_grad_(True)
    with AttentionMaps(pipeline.unet) as maps:
        pipeline.unet(x, timestep, encoder_hidden_states=states)
        average = maps.average()
        return (x - size * torch.autograd.grad(loss(average), x)[0]).detach(), average.detach()


def test_conform_is_descent_on_nt_xent_with_the_step_before(pipeline):
    seen = []
    hook = pipeline.unet.conv_in.register_forward_pre_hook(lambda m, args: seen.append(args[0].clone()))
    paint(controlled(pipeline, Conform("red mug; blue chair", refine={}, until=1.0, size=3000.0)), PROMPT, steps=2)
    hook.remove()
    first, second = (seen[i] for i in (0, 2))  # what the control's own passes read; the pipeline's have two rows
    assert [len(latents) for latents in seen] == [1, 2, 1, 2]
    pipeline.scheduler.set_timesteps(2)
    times = pipeline.scheduler.timesteps

    def vectors(average):
        return smooth(average[..., [2, 3, 6, 7]].movedim(-1, 1)).flatten(2)

    moved, average = plain_update(pipeline, first, times[0], lambda a: contrast(vectors(a), [0, 0, 1, 1]), 3000.0)
    torch.testing.assert_close(seen[1][1:], moved, atol=1e-5, rtol=1e-5)
    before = vectors(average)
    moved, _ = plain_update(
        pipeline, second, times[1], lambda a: contrast(torch.cat([vectors(a), before], 1), [0, 0, 1, 1] * 2),
        3000.0 * 0.5**0.5,
    )  # fmt: skip
    torch.testing.assert_close(seen[3][1:], moved, atol=1e-5, rtol=1e-5)
    assert (moved - second).abs().max() > 1e-3


def test_boxes_move_attention_inside(pipeline):
    box, losses = (0.0, 0.0, 0.5, 1.0), []

    class Watched(Boxes):
        def loss(self, words, step):
            losses.append(super().loss(words, step))
            return losses[-1]

    paint(controlled(pipeline, Watched({"mug": box}, weight=2e5, tries=3)), PROMPT, steps=5)
    assert len(losses) == 3 and losses[2] < losses[1] < losses[0]


def test_no_weight_is_stock_bit_for_bit_and_a_null_is_another_direction(pipeline):
    stock, before = paint(pipeline, PROMPT, steps=2), hooks(pipeline.unet)
    for control in (Boxes({"mug": (0, 0, 1, 1)}, weight=0), Conform("red mug; blue chair", size=0)):
        assert torch.equal(stock, paint(controlled(pipeline, control), PROMPT, steps=2))
    moved = [
        paint(
            controlled(pipeline, Conform("red mug; blue chair", refine={}, size=50.0, null_seed=seed)), PROMPT, steps=2
        )
        for seed in (None, 0, 0, 1)
    ]
    assert torch.equal(moved[1], moved[2])
    assert len({latents.sum().item() for latents in (stock, *moved)}) == 4
    assert hooks(pipeline.unet) == before


def test_controls_compose(pipeline):
    controls = (
        Conform("red mug; blue chair", refine={}),
        Boxes({"mug": (0, 0, 0.5, 1)}, weight=1e4, until=0.5, tries=1),
    )
    both = paint(controlled(pipeline, *controls), PROMPT, steps=2)
    for control in controls:
        assert not torch.equal(both, paint(controlled(pipeline, control), PROMPT, steps=2))


def test_boxes_are_read_and_drawn():
    assert parse_boxes("red mug=0,.25,.5,1; chair=.5,0,1,1") == {"red mug": (0, 0.25, 0.5, 1), "chair": (0.5, 0, 1, 1)}
    mask = draw((0.5, 0.0, 1.0, 0.25), 4, 8)
    assert mask[0, 4:].all() and mask.sum() == 4
    assert draw((0.99, 0.99, 1.0, 1.0), 4, 4).sum() == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Boxes("mug=0,0,2,1"), "inside of the picture"),
        (lambda: Boxes("mug=0.5,0,0.2,1"), "inside of the picture"),
        (lambda: Boxes("mug=0,0,1"), "inside of the picture"),
        (lambda: Boxes("mug=a,0,1,1"), "expected PHRASE=left"),
        (lambda: Boxes("0,0,1,1"), "expected PHRASE=left"),
        (lambda: Boxes("dog=0,0,1,1"), "'dog' is not in the prompt"),
        (lambda: Boxes(""), "no box was given"),
        (lambda: Boxes({}), "no box was given"),
        (lambda: Boxes(" ; "), "no box was given"),
        (lambda: Conform("red mug"), "expected two or more"),
        (lambda: Conform(["red mug"]), "expected two or more"),
        (lambda: Conform("red mug; blue dog"), "'blue dog' is not in the prompt"),
        (lambda: Conform("red mug; blue chair", layers=5), "factor=5"),
        (lambda: Conform("red mug; blue chair", refinements=-1), "refinements=-1"),
    ],
)
def test_mistakes_are_one_sentence(make, words, pipeline):
    with pytest.raises(UserError, match=words) as caught:
        paint(controlled(pipeline, make()), PROMPT, steps=2)
    assert "\n" not in str(caught.value)


def test_words_in_place_of_embeddings_are_asked_for(pipeline):
    embeds = pipeline.encode_prompt(PROMPT, "cpu", 1, False)[0]
    with pytest.raises(UserError, match="give prompt="):
        controlled(pipeline, Conform("red mug; blue chair"))(prompt_embeds=embeds, guidance_scale=1.0)
