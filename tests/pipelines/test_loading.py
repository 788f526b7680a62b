"""Concepts in stock pipelines of every kind; bit for bit stock without a concept and after unload."""

import copy

import diffusers
import pytest
import tiny
import torch
from painting import PROMPT, make_concept, make_controlnet

import escdiff
from escdiff.concept import token_masks
from escdiff.conditioning import PromptEncoder
from escdiff.conditioning.grid import expand, pack
from escdiff.conditioning.header import Marks
from escdiff.sharing.layouts import export_embeddings
from escdiff.support.errors import UserError

SIZE = 128
OPTIONS = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "latent", "height": SIZE, "width": SIZE}
KINDS = ("sd", "sd21", "sdxl", "img2img", "inpaint", "controlnet", "sdxl_img2img", "sdxl_controlnet")


@pytest.fixture(scope="module")
def backbones(tiny_backbone):
    return {"sd": tiny.copied(tiny_backbone), "sd21": tiny.make_sd21(), "sdxl": tiny.make_sdxl()}


def make_pipeline(kind, backbones):
    """(pipeline, what it takes besides a prompt)."""
    name = "sdxl" if kind.startswith("sdxl") else "sd21" if kind == "sd21" else "sd"
    pipeline = backbones[name].pipeline()
    picture = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(5))
    shown, classes = {"image": picture}, {
        "img2img": diffusers.StableDiffusionImg2ImgPipeline, "inpaint": diffusers.StableDiffusionInpaintPipeline,
        "controlnet": diffusers.StableDiffusionControlNetPipeline,
        "sdxl_img2img": diffusers.StableDiffusionXLImg2ImgPipeline,
        "sdxl_controlnet": diffusers.StableDiffusionXLControlNetPipeline,
    }  # fmt: skip
    if kind not in classes:
        shown = {}
    else:
        parts = dict(pipeline.components)
        if kind.startswith("sdxl"):
            parts["add_watermarker"] = False
        else:
            parts |= {"safety_checker": None, "requires_safety_checker": False}
        if "controlnet" in kind:
            parts["controlnet"] = make_controlnet(pipeline.unet)
        pipeline = classes[kind](**parts)
        if kind == "inpaint":  # Stable Diffusion's inpainting U-Net reads the mask and the masked picture too
            parts |= {"unet": tiny.make_unet(in_channels=9, out_channels=4), "vae": tiny.make_vae(4)}
            pipeline = classes[kind](**parts)
            shown["mask_image"] = (picture[:, :1] > 0.5).float()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, shown


def paint(pipeline, prompt, seed=3, **options):
    prompt = [prompt] if isinstance(prompt, str) else prompt
    seeds = [seed] * len(prompt) if isinstance(seed, int) else seed
    options = OPTIONS | options
    if "Img2Img" in type(pipeline).__name__:
        options = {k: v for k, v in options.items() if k not in ("height", "width")} | {"strength": 0.9}
    generators = [torch.Generator().manual_seed(s) for s in seeds]
    return pipeline(prompt, generator=generators, **options).images


@pytest.mark.parametrize("kind", KINDS)
def test_every_pipeline_reads_concepts_and_is_stock_without(kind, backbones):
    pipeline, shown = make_pipeline(kind, backbones)
    if "controlnet" in kind:
        nets = {"controlnet": pipeline.controlnet}
    stock = paint(pipeline, ["a mug", "<b> a dog"], negative_prompt=["dark", "red"], **shown)
    backbone = backbones["sdxl" if kind.startswith("sdxl") else kind if kind == "sd21" else "sd"]
    words = paint(pipeline, "a photo of a object object object object", **shown)
    assert escdiff.load_concept(pipeline, make_concept(backbone, spread=0.0)) == (
        "<shape>",
        "<appearance>",
        "<concept>",
    )
    assert torch.equal(stock, paint(pipeline, ["a mug", "<b> a dog"], negative_prompt=["dark", "red"], **shown))
    # Vectors that are the words' own in every layer give the stock picture, through the packed path.
    torch.testing.assert_close(paint(pipeline, PROMPT, **shown), words, atol=1e-5, rtol=1e-5)
    escdiff.unload_concept(pipeline)
    escdiff.load_concept(pipeline, make_concept(backbone, spread=20.0))
    changed = paint(pipeline, PROMPT, **shown)
    assert not torch.allclose(changed, words, atol=1e-3)
    escdiff.unload_concept(pipeline)
    assert torch.equal(stock, paint(pipeline, ["a mug", "<b> a dog"], negative_prompt=["dark", "red"], **shown))
    assert "encode_prompt" not in vars(pipeline)
    for part in (pipeline.unet, *(nets.values() if "controlnet" in kind else ())):
        assert not any(module._forward_pre_hooks for module in part.modules())


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_a_batch_is_its_pictures_one_by_one(name, backbones):
    pipeline, _ = make_pipeline(name, backbones)
    escdiff.load_concept(pipeline, make_concept(backbones[name]))
    prompts = [PROMPT, "a <shape>", "a red cat"]
    negatives = ["dark", "", "<appearance>"]
    together = paint(pipeline, prompts, seed=[1, 2, 3], negative_prompt=negatives)
    for i, (prompt, negative) in enumerate(zip(prompts, negatives, strict=True)):
        alone = paint(pipeline, prompt, seed=[i + 1], negative_prompt=[negative])
        torch.testing.assert_close(together[i : i + 1], alone, atol=2e-5, rtol=1e-4)
    several = pipeline(PROMPT, num_images_per_prompt=2, generator=torch.Generator().manual_seed(1), **OPTIONS).images
    assert several.shape[0] == 2 and not torch.equal(several[0], several[1])
    escdiff.unload_concept(pipeline)


def test_sdxl_equals_stock_with_other_prompts_and_skips(backbones):
    pipeline, _ = make_pipeline("sdxl", backbones)
    asked = {"prompt_2": ["a object thing"], "negative_prompt": ["dark"], "negative_prompt_2": ["bad"], "clip_skip": 1}
    stock = paint(pipeline, "a object object object object", **asked)
    escdiff.load_concept(pipeline, make_concept(backbones["sdxl"], spread=0.0))
    torch.testing.assert_close(paint(pipeline, "a <appearance> <shape>", **asked), stock, atol=1e-5, rtol=1e-5)
    escdiff.unload_concept(pipeline)


def test_several_concepts_in_one_prompt_and_their_names(backbones, tmp_path):
    pipeline, _ = make_pipeline("sd", backbones)
    make_concept(backbones["sd"], 1).save(tmp_path / "mug.safetensors")
    assert escdiff.load_concept(pipeline, tmp_path / "mug.safetensors", "mug") == (
        "<mug-shape>", "<mug-appearance>", "<mug>")  # fmt: skip
    staged = make_concept(backbones["sd"], 2, layers="tied", stages=5)
    escdiff.load_concept(pipeline, staged, "dog", strength={"shape": 0.5})
    both = paint(pipeline, "a <mug-shape> beside a <dog>")
    with pytest.raises(UserError, match="already"):
        escdiff.load_concept(pipeline, staged, "dog")
    escdiff.unload_concept(pipeline, "dog")
    alone = paint(pipeline, "a <mug-shape> beside a dog")
    assert both.shape == alone.shape and not torch.allclose(both, alone)
    with pytest.raises(UserError, match="unknown placeholder <dog>"):
        paint(pipeline, "a <mug> beside a <dog>")
    with pytest.raises(UserError, match="'cat' is loaded; expected one of mug"):
        escdiff.unload_concept(pipeline, "cat")
    escdiff.unload_concept(pipeline)


def test_wrong_models_are_refused_naming_both_sides(backbones):
    pipeline, _ = make_pipeline("sdxl", backbones)
    with pytest.raises(UserError, match="16 layer cells.*11 layer cells"):
        escdiff.load_concept(pipeline, make_concept(backbones["sd"]))
    other = copy.copy(backbones["sd"])
    other.__dict__ |= {"text_hash": "0123456789ab"}
    pipeline, _ = make_pipeline("sd", backbones)
    with pytest.raises(UserError, match="text encoder 0123456789ab"):
        escdiff.load_concept(pipeline, make_concept(other))
    escdiff.load_concept(pipeline, make_concept(other), other_text_encoder=True)
    escdiff.unload_concept(pipeline)
    with pytest.raises(UserError, match="expected a Stable Diffusion pipeline"):
        escdiff.load_concept(diffusers.DDPMPipeline(pipeline.unet, pipeline.scheduler), make_concept(backbones["sd"]))


@pytest.mark.parametrize("name", [
    "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler", "LCMScheduler",
])  # fmt: skip
def test_every_scheduler(name, backbones):
    """A concept of stages too, which no step's callback serves: some schedulers call the U-Net twice per step.

    The stages' vectors differ, and the expected picture is the stock U-Net's, given each timestep's own prompt by hand.
    """
    pipeline, _ = make_pipeline("sd", backbones)
    options = {"skip_prk_steps": True} if name == "PNDMScheduler" else {}
    pipeline.scheduler = getattr(diffusers, name).from_config(pipeline.scheduler.config, **options)
    concept = make_concept(backbones["sd"], spread=20.0, layers="tied", stages=3)
    with torch.no_grad():
        grid = pipeline_prompts(pipeline).encode(["", PROMPT], concept.placeholders())[:, 0]  # (2, 3, 77, D)
    seen = []

    def give(unet, args, kwargs):
        stage = sum(int(args[1]) >= bound for bound in concept.space.stage_bounds[1:-1])
        seen.append(stage)
        return args, kwargs | {"encoder_hidden_states": grid[:, stage]}

    with pipeline.unet.register_forward_pre_hook(give, with_kwargs=True):
        expected = paint(pipeline, "a mug", num_inference_steps=3)
    assert len(set(seen)) > 1
    escdiff.load_concept(pipeline, concept)
    found = paint(pipeline, PROMPT, num_inference_steps=3)
    escdiff.unload_concept(pipeline)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def pipeline_prompts(pipeline):
    return PromptEncoder(pipeline.tokenizer, pipeline.text_encoder)


def test_lora_and_its_scale(backbones, tmp_path):
    """A community LoRA file over U-Net and text encoder, at half strength, on top of a concept."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    source = tiny.copied(backbones["sd"])
    states = {}
    for part, targets in (("unet", ["to_k", "to_v"]), ("text_encoder", ["q_proj", "v_proj"])):
        model = getattr(source, part)
        try:
            model.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
        except ValueError as error:  # transformers may ask for a PEFT that is not released yet
            assert part == "text_encoder" and "version of PEFT" in str(error)
            continue
        states[part] = get_peft_model_state_dict(model)
    diffusers.StableDiffusionPipeline.save_lora_weights(tmp_path, states["unet"], states.get("text_encoder"))

    backbone = tiny.copied(backbones["sd"])
    pipeline = backbone.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    before = paint(pipeline, "a object object object object")
    pipeline.load_lora_weights(tmp_path)
    half = {"cross_attention_kwargs": {"scale": 0.5}}
    words = [paint(pipeline, "a object object object object", **more) for more in ({}, half)]
    escdiff.load_concept(pipeline, make_concept(backbone, spread=0.0))
    for expected, more in zip(words, ({}, half), strict=True):
        torch.testing.assert_close(paint(pipeline, "a <concept>", **more), expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(words[0], words[1], atol=1e-3)
    escdiff.unload_concept(pipeline)
    pipeline.unload_lora_weights()
    assert torch.equal(paint(pipeline, "a object object object object"), before)


def test_with_textual_inversion_and_slicing(backbones, tmp_path):
    backbone = copy.deepcopy(backbones["sd"])
    pipeline = backbone.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    export_embeddings(make_concept(backbone, layers="tied"), tmp_path / "ti.safetensors", "shape", token="<cat-toy>")
    pipeline.load_textual_inversion(tmp_path / "ti.safetensors")
    escdiff.load_concept(pipeline, make_concept(backbone, spread=0.0))
    pipeline.enable_attention_slicing()
    sliced = paint(pipeline, "a <cat-toy> like a <shape>")
    pipeline.disable_attention_slicing()
    whole = paint(pipeline, "a <cat-toy> like a <shape>")
    torch.testing.assert_close(sliced, whole, atol=1e-4, rtol=1e-4)
    escdiff.unload_concept(pipeline)
    torch.testing.assert_close(paint(pipeline, "a <cat-toy> like a object object"), whole, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 0.02), (torch.bfloat16, 0.1)])
def test_half_precision_within_tolerance(dtype, tolerance, backbones):
    """Latents of unit scale: mean distance from float32."""
    full, half = backbones["sd"], tiny.copied(backbones["sd"]).to(dtype=dtype)
    pictures = []
    for backbone in (full, half):
        pipeline = backbone.pipeline()
        pipeline.set_progress_bar_config(disable=True)
        escdiff.load_concept(pipeline, make_concept(full))
        pictures.append(paint(pipeline, PROMPT).float())
        escdiff.unload_concept(pipeline)
    assert torch.isfinite(pictures[1]).all()
    assert (pictures[0] - pictures[1]).abs().mean() / pictures[0].std() < tolerance


@pytest.mark.slow
def test_compiles_once_for_all_prompts_and_concepts(backbones):
    from torch._dynamo.testing import CompileCounter

    pipeline, _ = make_pipeline("sd", backbones)
    once = {"num_inference_steps": 1}
    escdiff.load_concept(pipeline, make_concept(backbones["sd"], 1))
    expected = [paint(pipeline, prompt, **once) for prompt in (PROMPT, "a <shape> on a beach, at night")]
    escdiff.unload_concept(pipeline)
    torch.compiler.reset()
    counter = CompileCounter()
    pipeline.unet = torch.compile(pipeline.unet, backend=counter, fullgraph=True)
    stock = paint(pipeline, "a mug", **once)  # compiled before a concept is there, which its hooks must not be lost on
    assert counter.frame_count == 1
    escdiff.load_concept(pipeline, make_concept(backbones["sd"], 1), "one")
    escdiff.load_concept(pipeline, make_concept(backbones["sd"], 2), "two")
    counter.clear()
    for prompt, picture in zip((PROMPT, "a <shape> on a beach, at night"), expected, strict=True):
        torch.testing.assert_close(paint(pipeline, prompt.replace("<", "<one-"), **once), picture, atol=1e-4, rtol=1e-4)
    other = paint(pipeline, PROMPT.replace("<", "<two-"), **once)
    assert not torch.allclose(other, expected[0], atol=1e-4) and counter.frame_count == 1
    escdiff.unload_concept(pipeline)
    torch.testing.assert_close(paint(pipeline, "a mug", **once), stock)
    torch.compiler.reset()


def test_weighting_by_another_tool(backbones):
    """Any function from text to embeddings, cell by cell; here the text encoder itself, so the result is known."""
    backbone = backbones["sd"]
    pipeline, _ = make_pipeline("sd", backbones)
    concept = make_concept(backbone)
    escdiff.load_concept(pipeline, concept)
    seen = []

    def encode(text):
        seen.append(text)
        return pipeline.encode_prompt(text, "cpu", 1, False)[0]

    with torch.no_grad():
        embeds, negative = (escdiff.weighted(pipeline, text, encode) for text in (PROMPT, "dark"))
        grid = backbone.prompts.encode([PROMPT], concept.placeholders())
    places = token_masks(backbone.prompts, [PROMPT], {word: v.shape[3] for word, v in concept.placeholders().items()})
    torch.testing.assert_close(embeds, pack(grid[:, :, 0], Marks(places, torch.zeros(1))))
    plain = expand(backbone.prompts.encode_plain(["dark"]), 16, 1)
    assert torch.equal(negative, pack(plain[:, :, 0]))
    assert len(set(seen)) == 2 and "<" not in seen[0]
    painted = pipeline(prompt_embeds=embeds, negative_prompt_embeds=negative, **OPTIONS,
                       generator=torch.Generator().manual_seed(3)).images  # fmt: skip
    torch.testing.assert_close(painted, paint(pipeline, PROMPT, negative_prompt=["dark"]), atol=1e-4, rtol=1e-4)
    escdiff.unload_concept(pipeline)


def test_weighting_by_compel(backbones):
    compel = pytest.importorskip("compel")  # the extra `compel`
    pipeline, _ = make_pipeline("sd", backbones)
    encode = compel.Compel(tokenizer=pipeline.tokenizer, text_encoder=pipeline.text_encoder)
    stock = encode("a (object object)1.4 mug")
    escdiff.load_concept(pipeline, make_concept(backbones["sd"], spread=0.0))
    ours = escdiff.weighted(pipeline, "a (<shape>)1.4 mug", encode)
    escdiff.unload_concept(pipeline)
    torch.testing.assert_close(ours[:, : 16 * 77].unflatten(1, (16, 77)), stock[:, None].expand(-1, 16, -1, -1))


@pytest.mark.parametrize("stages", [1, 2])
def test_weighting_of_no_placeholder_and_of_one_twice_is_the_pipelines_own(backbones, stages):
    pipeline, _ = make_pipeline("sd", backbones)
    stock = pipeline.encode_prompt
    escdiff.load_concept(pipeline, make_concept(backbones["sd"], stages=stages))
    twice = "a <shape> beside a <shape>"

    def encode(text):
        return stock(text, "cpu", 1, False)[0]

    with torch.no_grad():
        ours = [escdiff.weighted(pipeline, text, encode) for text in (twice, "dark")]
        own = pipeline.encode_prompt(twice, "cpu", 1, True, negative_prompt="dark")[:2]
    escdiff.unload_concept(pipeline)
    for found, expected in zip(ours, own, strict=True):
        torch.testing.assert_close(found, expected)
