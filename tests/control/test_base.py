"""Controls in stock pipelines of every kind, with any scheduler; without a trace afterwards."""

import diffusers
import pytest
import tiny
import torch
from call import hooks, make_pipeline, paint
from painting import make_concept, make_controlnet

import escdiff
from escdiff.control import Control, controlled
from escdiff.control.attend_excite import AttendExcite
from escdiff.pipelines.generate import generate
from escdiff.support.errors import UserError

PROMPT = "a red mug and a blue chair"


class Shift(Control):
    """Adds a number before and after."""

    def __init__(self, before=0.0, after=0.0):
        self.added, self.later, self.steps = before, after, []

    def before(self, step, latents):
        self.steps.append((step.index, step.total, len(latents)))
        return latents + self.added

    def after(self, step, latents):
        return latents + self.later


@pytest.fixture(scope="module")
def backbones(tiny_backbone):
    return {"sd": tiny.copied(tiny_backbone), "sd21": tiny.make_sd21(), "sdxl": tiny.make_sdxl()}


def quick(**options):
    return AttendExcite("mug; chair", size=400.0, until=1.0, refine={}, **options)


def test_latents_are_changed_where_the_unet_and_the_scheduler_read_them(backbones):
    """Shifting before a step is starting from shifted latents; shifting after the last one shifts the result."""
    pipeline, latents = make_pipeline(backbones["sd"]), torch.randn(1, 8, 16, 16)
    stock = paint(pipeline, PROMPT, steps=1, latents=latents + 0.5)
    shift = Shift(before=0.5)
    torch.testing.assert_close(paint(controlled(pipeline, shift), PROMPT, steps=1, latents=latents), stock)
    assert shift.steps == [(0, 1, 1)]
    late = paint(controlled(pipeline, Shift(after=0.25)), PROMPT, steps=1, latents=latents + 0.5)
    torch.testing.assert_close(late, stock + 0.25)


@pytest.mark.parametrize(
    "name", ["DDIM", "PNDM", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "UniPCMultistep",
             "DPMSolverMultistep", "LMSDiscrete"],
)  # fmt: skip
def test_any_scheduler(name, backbones):
    pipeline = make_pipeline(backbones["sd"])
    kind = getattr(diffusers, f"{name}Scheduler")
    pipeline.scheduler = kind.from_config(
        pipeline.scheduler.config, **({"skip_prk_steps": True} if name == "PNDM" else {})
    )
    stock, control = paint(pipeline, PROMPT, steps=3), Shift()
    close = paint(controlled(pipeline, control), PROMPT, steps=3)  # adding zero makes new tensors of the same values
    torch.testing.assert_close(close, stock, atol=1e-4, rtol=1e-4)
    count = len(pipeline.scheduler.timesteps) if pipeline.scheduler.order == 1 else 3
    assert [step[:2] for step in control.steps] == [(i, count) for i in range(count)]
    assert (paint(controlled(pipeline, Shift(before=0.1)), PROMPT, steps=3) - stock).abs().max() > 1e-3


KINDS = {
    "sd": diffusers.StableDiffusionPipeline, "sd21": diffusers.StableDiffusionPipeline,
    "sdxl": diffusers.StableDiffusionXLPipeline, "img2img": diffusers.StableDiffusionImg2ImgPipeline,
    "inpaint": diffusers.StableDiffusionInpaintPipeline, "controlnet": diffusers.StableDiffusionControlNetPipeline,
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_every_pipeline_is_steered_in_batches_and_stock_again(name, backbones):
    backbone, parts, shown = backbones.get(name, backbones["sd"]), {}, {}
    picture = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(5))
    if name == "controlnet":
        parts["controlnet"] = make_controlnet(backbone.unet)
    if name == "inpaint":  # a model that reads the mask and the masked picture behind the latents
        parts = {"unet": tiny.make_unet(in_channels=9, out_channels=4), "vae": tiny.make_vae(4)}
        shown["mask_image"] = (picture[:, :1] > 0.5).float()
    if name not in backbones:
        shown["image"] = picture
    if name == "img2img":
        shown |= {"strength": 0.7, "height": None, "width": None}
    pipeline = make_pipeline(backbone, KINDS[name], **parts)
    if name == "img2img":
        call = pipeline

        def pipeline(*args, **options):
            return call(*args, **{k: v for k, v in options.items() if v is not None})

        pipeline.unet, steered = call.unet, controlled(call, quick())

        def steer(*args, **options):
            return steered(*args, **{k: v for k, v in options.items() if v is not None})

    else:
        steer = controlled(pipeline, quick())
    prompts, before = [PROMPT, "a chair, a mug"], hooks(pipeline.unet)
    stock = paint(pipeline, prompts, steps=3, **shown)
    both = paint(steer, prompts, steps=3, **shown)
    assert both.shape == stock.shape and not torch.allclose(both, stock, atol=1e-3)
    one = {key: value[1:] if isinstance(value, torch.Tensor) else value for key, value in shown.items()}
    torch.testing.assert_close(paint(steer, prompts[1], seed=4, steps=3, **one), both[1:], atol=1e-3, rtol=1e-3)
    assert torch.equal(paint(pipeline, prompts, steps=3, **shown), stock)
    assert hooks(pipeline.unet) == before


def test_concepts_in_every_layer_are_steered(backbones):
    pipeline = make_pipeline(backbones["sd"])
    escdiff.load_concept(pipeline, make_concept(backbones["sd"], spread=20.0), name="toy")
    prompt = "a <toy-shape> and a blue chair"
    stock = paint(pipeline, prompt, steps=2)
    steered = AttendExcite("<toy-shape>; chair", size=400.0, refine={})
    assert not torch.equal(paint(controlled(pipeline, steered), prompt, steps=2), stock)
    with pytest.raises(UserError, match="'mug' is not in the prompt"):
        paint(controlled(pipeline, quick()), prompt, steps=2)
    escdiff.unload_concept(pipeline)


def test_generate_takes_controls(backbones):
    concept = make_concept(backbones["sd"], spread=20.0)
    prompt, control = "a <appearance> mug and a chair", quick()
    stock, none, steered = (
        generate(backbones["sd"], [prompt], concept, steps=2, controls=controls)[0].tobytes()
        for controls in ((), (AttendExcite("mug", size=0),), (control,))
    )
    assert stock == none != steered


def test_lora_before_and_a_compiled_unet(backbones):
    from peft import LoraConfig

    pipeline = make_pipeline(tiny.copied(backbones["sd"]))
    plain = paint(controlled(pipeline, quick()), PROMPT, steps=2)
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False))
    with_lora = paint(controlled(pipeline, quick()), PROMPT, steps=2)
    assert not torch.allclose(with_lora, plain, atol=1e-3)
    pipeline.unet.delete_adapters("default")
    pipeline.unet = torch.compile(pipeline.unet, backend="aot_eager")
    torch.testing.assert_close(paint(controlled(pipeline, quick()), PROMPT, steps=2), plain, atol=1e-4, rtol=1e-4)
    torch.compiler.reset()


def test_parameters_take_gradients_again_afterwards(backbones):
    pipeline = make_pipeline(tiny.copied(backbones["sd"]))
    pipeline.unet.requires_grad_(True)
    paint(controlled(pipeline, quick()), PROMPT, steps=1)
    assert all(p.requires_grad and p.grad is None for p in pipeline.unet.parameters())


def test_what_is_no_stable_diffusion_or_has_other_rows_is_refused(backbones):
    class Other:
        scheduler = None

    with pytest.raises(UserError, match="expected a Stable Diffusion pipeline"):
        controlled(Other(), quick())("a mug")
    pipeline = make_pipeline(backbones["sd"])
    with pytest.raises(UserError, match="no prompt was given"):
        controlled(pipeline, quick())()
    unet = tiny.make_unet(in_channels=16)
    kind = diffusers.StableDiffusionInstructPix2PixPipeline
    three = make_pipeline(backbones["sd"], kind, unet=unet, image_encoder=None)
    with pytest.raises(UserError, match="runs 3 rows for 1 pictures"):
        controlled(three, quick())(PROMPT, image=torch.rand(1, 3, 128, 128), num_inference_steps=1)
