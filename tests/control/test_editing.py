"""Real pictures backwards and editing in the source's layout, on tiny models."""

from contextlib import contextmanager

import diffusers
import numpy as np
import pytest
import tiny
import torch
from call import hooks, make_pipeline, paint
from painting import make_concept

import escdiff
from escdiff.backbone import load_backbone
from escdiff.control import Control, controlled
from escdiff.control.inversion import Recorder, Trajectory, decode, fidelity, invert, psnr, record, repaint
from escdiff.control.keep import Keep
from escdiff.control.plug_and_play import PlugAndPlay, injected_layers
from escdiff.control.rider import Rider
from escdiff.control.transfer import transfer
from escdiff.evaluation.bench.pictures import draw
from escdiff.mini.world import world
from escdiff.mini.world.captions import caption
from escdiff.support.errors import UserError

PROMPT, OTHER = "a red mug", "a blue chair on a table"
STEPS = 4


@pytest.fixture(scope="module")
def backbones(tiny_backbone):
    return {"sd": tiny.copied(tiny_backbone), "sd21": tiny.make_sd21(), "sdxl": tiny.make_sdxl()}


@pytest.fixture(scope="module", params=["sd", "sd21", "sdxl"])
def pipeline(request, backbones):
    return make_pipeline(backbones[request.param])


def painted(pipeline, prompt=PROMPT, **options) -> Trajectory:
    options = {"guidance_scale": 1.0, "num_inference_steps": STEPS, "height": 128, "width": 128} | options
    return record(pipeline, prompt, generator=torch.Generator().manual_seed(1), **options)


def edit(pipeline, prompt, *controls, **options):
    return paint(controlled(pipeline, *controls), prompt, **{"steps": STEPS} | options)


def test_a_recorded_way_is_the_stock_picture(pipeline):
    source = painted(pipeline)
    assert torch.equal(source.clean, paint(pipeline, PROMPT, seed=1, steps=STEPS, guidance=1.0))
    assert torch.equal(source.start, torch.randn(1, 8, 16, 16, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(repaint(pipeline, source), source.clean)
    assert list(source.latents) == pipeline.scheduler.timesteps.tolist()


def test_inversion_leads_back(pipeline):
    """Against the plain equation of DDIM, and, with more steps, back to the picture."""
    picture = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    source = invert(pipeline, picture, PROMPT, steps=STEPS, rounds=1)
    pipeline.scheduler.set_timesteps(STEPS)
    assert list(source.latents) == pipeline.scheduler.timesteps.tolist()
    first = list(source.latents)[-1]
    alpha = pipeline.scheduler.alphas_cumprod
    now = alpha[first]
    before = torch.tensor(1.0) if pipeline.scheduler.config.set_alpha_to_one else alpha[0]
    output = pipeline.unet(source.clean, first, **source.inputs)[0]
    if pipeline.scheduler.config.prediction_type == "v_prediction":
        x0 = before**0.5 * source.clean - (1 - before) ** 0.5 * output
        noise = before**0.5 * output + (1 - before) ** 0.5 * source.clean
    else:
        x0, noise = (source.clean - (1 - before) ** 0.5 * output) / before**0.5, output
    torch.testing.assert_close(source.at(first), now**0.5 * x0 + (1 - now) ** 0.5 * noise, atol=1e-5, rtol=1e-5)
    more = invert(pipeline, picture, PROMPT, steps=STEPS, rounds=8)
    step = pipeline.scheduler.step(pipeline.unet(more.at(first), first, **more.inputs)[0], first, more.at(first))
    torch.testing.assert_close(step.prev_sample, more.clean, atol=0.02, rtol=0.02)  # it has converged


@pytest.mark.slow
def test_the_bundled_model_paints_a_real_picture_again():
    """A Still Life render with its caption, against what the VAE makes of it."""
    pipeline, factors = load_backbone().pipeline(), world.sample_factors(np.random.default_rng(5))
    pipeline.set_progress_bar_config(disable=True)
    for steps, rounds, goal in ((100, 1, 35), (25, 4, 40)):
        source = invert(pipeline, draw([factors])[0], caption(factors), steps, rounds)
        assert fidelity(pipeline, source) > goal


@torch.no_grad()
def test_psnr_by_hand(pipeline):
    zero, mask = torch.zeros(1, 3, 2, 2), torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    assert psnr(zero, zero + 0.1) == pytest.approx(20.0, abs=1e-4)
    spot = zero.clone()
    spot[..., 0, 0] = 0.01
    assert psnr(zero, spot, mask) == pytest.approx(40.0, abs=1e-4)
    assert decode(pipeline, torch.randn(1, 8, 16, 16)).shape == (1, 3, 128, 128)


def test_own_prompt_and_everything_injected_is_the_source_bit_for_bit(pipeline):
    """The source is painted in a batch of two, as it will be when it rides along: others are rounded otherwise."""
    recorder, before = Recorder(), hooks(pipeline.unet)
    start = painted(pipeline).start.repeat(2, 1, 1, 1)
    both = edit(pipeline, [PROMPT] * 2, recorder, guidance=1.0, latents=start)
    latents = {timestep: pair[:1] for timestep, pair in recorder.latents.items()}
    source = Trajectory(latents, both[:1], recorder.inputs, PROMPT)
    control = PlugAndPlay(source, attention=1.0, features=1.0, factor=2)
    result = edit(pipeline, PROMPT, control, guidance=1.0)
    if isinstance(pipeline, diffusers.StableDiffusionXLPipeline):  # here another memory format rounds otherwise
        torch.testing.assert_close(result, source.clean, atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(result, source.clean)
    assert not torch.equal(edit(pipeline, OTHER, control, guidance=1.0), source.clean)
    assert hooks(pipeline.unet) == before


def test_nothing_injected_is_stock_bit_for_bit(pipeline):
    source = painted(pipeline)
    stock = paint(pipeline, OTHER, steps=STEPS, latents=source.start)
    assert torch.equal(edit(pipeline, OTHER, PlugAndPlay(source, attention=0.0, features=0.0)), stock)
    torch.testing.assert_close(edit(pipeline, OTHER, Rider(source)), stock, atol=1e-4, rtol=1e-4)
    injected = edit(pipeline, OTHER, PlugAndPlay(source, factor=2))
    assert not torch.allclose(injected, stock, atol=1e-4)


def test_shares_say_how_long_the_sources_features_stand_in(backbones):
    pipeline = make_pipeline(backbones["sd"])
    source, seen = painted(pipeline), {"attention": [], "features": []}
    attention, features = injected_layers(pipeline.unet, 1)
    assert len(attention) == 4 and len(injected_layers(pipeline.unet, 4)[0]) == 16  # decoder layers 4 to 11

    class Watch(Control):  # behind the other, so that its hooks see what that one left
        @contextmanager
        def attach(self, run):
            def look(kind):
                return lambda module, args, output: seen[kind].append(torch.equal(output[0], output[-1]))

            handles = [
                attention[0].register_forward_hook(look("attention")),
                features[0].register_forward_hook(look("features")),
            ]
            yield
            for handle in handles:
                handle.remove()

    edit(pipeline, OTHER, PlugAndPlay(source, attention=0.5, features=0.25, factor=1), Watch())
    assert seen["attention"] == [True, True, False, False] and seen["features"] == [True, False, False, False]


def test_a_batch_and_concepts_share_one_source(backbones):
    pipeline = make_pipeline(backbones["sd"])
    source = painted(pipeline)  # its words are plain, those of the picture are packed
    escdiff.load_concept(pipeline, make_concept(backbones["sd"], spread=20.0))
    control = PlugAndPlay(source, factor=2)
    both = edit(pipeline, ["a <appearance> mug", OTHER], control)
    for i, prompt in enumerate(["a <appearance> mug", OTHER]):
        torch.testing.assert_close(edit(pipeline, prompt, control), both[i : i + 1], atol=1e-4, rtol=1e-4)
    escdiff.unload_concept(pipeline)


def test_outside_of_the_mask_the_source_stays_bit_for_bit(pipeline):
    source = painted(pipeline)
    mask = torch.zeros(1, 128, 128)
    mask[:, 32:64, 16:40] = 1
    result = edit(pipeline, OTHER, Keep(source, mask))
    changed = (result != source.clean).any(1)[0]
    assert changed[4:8, 2:5].all() and changed.sum() == 12
    both = edit(pipeline, OTHER, PlugAndPlay(source, factor=2), Keep(source, mask))
    assert ((both != source.clean).any(1)[0] == changed).all() and not torch.equal(both, result)
    assert torch.equal(edit(pipeline, OTHER, Keep(source, mask * 0 + 1)), paint(
        pipeline, OTHER, steps=STEPS, latents=source.start
    ))  # fmt: skip


def test_from_a_picture_on_the_source_begins_where_the_loop_does(backbones):
    """With strength .5 the first half of the source's steps is left out."""
    parts = {"unet": tiny.make_unet(in_channels=4, out_channels=4), "vae": tiny.make_vae(4)}  # as inpainting has it
    picture = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(2))
    source, mask = painted(make_pipeline(backbones["sd"], **parts)), torch.zeros(1, 128, 128)
    mask[:, 32:64, 16:40] = 1
    shown = {"image": picture, "strength": 0.5, "num_inference_steps": STEPS, "output_type": "latent"}
    for name in ("Img2Img", "Inpaint"):
        pipeline = make_pipeline(backbones["sd"], getattr(diffusers, f"StableDiffusion{name}Pipeline"), **parts)
        own = {} if name == "Img2Img" else {"mask_image": torch.ones(1, 1, 128, 128), "height": 128, "width": 128}
        for controls in ((Keep(source, mask),), (PlugAndPlay(source, factor=2), Keep(source, mask))):
            seen = Recorder()
            result = controlled(pipeline, *controls, seen)(
                OTHER, generator=torch.Generator().manual_seed(3), **shown, **own
            ).images
            first = next(iter(seen.latents))
            assert list(seen.latents) == list(source.latents)[2:] and torch.equal(seen.latents[first], source.at(first))
            changed = (result != source.clean).any(1)[0]
            assert changed[4:8, 2:5].all() and changed.sum() == 12


def test_a_model_with_more_channels_has_no_row_for_the_source(backbones):
    vae, inpainting = tiny.make_vae(4), diffusers.StableDiffusionInpaintPipeline
    source = painted(make_pipeline(backbones["sd"], unet=tiny.make_unet(in_channels=4, out_channels=4), vae=vae))
    pipeline = make_pipeline(backbones["sd"], inpainting, unet=tiny.make_unet(in_channels=9, out_channels=4), vae=vae)
    shown = {"image": torch.rand(1, 3, 128, 128), "mask_image": torch.ones(1, 1, 128, 128)}
    with pytest.raises(UserError, match="9 channels, the source picture 4") as caught:
        edit(pipeline, OTHER, PlugAndPlay(source, factor=2), **shown)
    assert "\n" not in str(caught.value)
    left = torch.zeros(1, 128, 128)
    left[..., :64] = 1
    assert torch.equal(edit(pipeline, OTHER, Keep(source, left), **shown)[..., 8:], source.clean[..., 8:])


def test_mistakes_are_one_sentence(backbones, caplog):
    pipeline = make_pipeline(backbones["sd"])
    source, mask = painted(pipeline), torch.ones(1, 128, 128)
    cases = [
        (lambda: edit(pipeline, OTHER, PlugAndPlay(source), steps=3), "num_inference_steps=4"),
        (lambda: edit(pipeline, OTHER, PlugAndPlay(source), height=64), "16 x 16 latents, the pipeline paints 8 x 16"),
        (lambda: edit(pipeline, OTHER, PlugAndPlay(source, factor=8)), "at factors 1, 2, 4"),
        (lambda: PlugAndPlay(source, attention=1.5), "attention=1.5"),
        (lambda: Keep(source, mask * 0), "expected"),
        (lambda: Keep(source, mask[:, :64]), "not the shape of the source"),
        (lambda: invert(pipeline, torch.rand(1, 3, 100, 128), PROMPT, 2), "128 x 100 pixels"),
    ]
    for call, words in cases:
        with pytest.raises(UserError, match=words) as caught:
            call()
        assert "\n" not in str(caught.value)
    invert(pipeline, torch.rand(1, 3, 128, 128), " ", 1)
    assert "empty prompt" in caplog.text
    other = make_pipeline(backbones["sd"])
    other.scheduler = diffusers.EulerDiscreteScheduler.from_config(other.scheduler.config)
    for call in (
        lambda: invert(other, torch.rand(1, 3, 128, 128), PROMPT, 2),
        lambda: record(other, PROMPT, num_inference_steps=1),
        lambda: edit(other, OTHER, Keep(source, mask)),
        lambda: edit(other, OTHER, PlugAndPlay(source)),
    ):
        with pytest.raises(UserError, match="expects DDIM"):
            call()


def test_transfer_is_layout_and_mask_for_an_appearance_and_the_mask_alone_for_a_shape(backbones):
    pipeline = make_pipeline(backbones["sd"])
    source, mask = painted(pipeline), torch.zeros(1, 128, 128)
    mask[:, 32:96, 32:96] = 1
    escdiff.load_concept(pipeline, make_concept(backbones["sd"], spread=20.0))
    prompt = "a <appearance> mug"
    given = edit(pipeline, prompt, *transfer(source, "appearance", mask, factor=1))
    assert torch.equal(given, edit(pipeline, prompt, PlugAndPlay(source, factor=1), Keep(source, mask)))
    assert torch.equal(
        edit(pipeline, prompt, *transfer(source, "shape", mask)), edit(pipeline, prompt, Keep(source, mask))
    )
    assert ((given != source.clean).any(1)[0].sum() == 64) and len(transfer(source, "appearance")) == 1
    escdiff.unload_concept(pipeline)
    for asked, words in ((("shape",), "without a mask"), (("colour", mask), "expected one of shape, appearance")):
        with pytest.raises(UserError, match=words):
            transfer(source, *asked)
