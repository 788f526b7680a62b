"""What diffusers asks of every text-to-image pipeline, asked of ours and, beside it, of the stock one.

The checks follow those of diffusers' own public pipeline tests for Stable Diffusion, on the tiny model. Each runs on
the stock pipeline, on `ESCDiffPipeline` with an encoder, and on that with a concept loaded and named in the prompt.
"""

import gc
import inspect
import json
import weakref

import artefacts
import diffusers
import numpy as np
import pytest
import tiny
import torch
from painting import make_concept

import escdiff
from escdiff import ESCDiffPipeline, ESCDiffXLPipeline
from escdiff.conditioning.header import split
from escdiff.support.errors import UserError

KINDS = ("stock", "ours", "concept")
PROMPTS = {"stock": "a red mug", "ours": "a red mug", "concept": "a <appearance> <shape>"}
OURS = {"shape", "appearance", "mask", "concept", "strength"}
SIZE = 64  # pixels
OPTIONAL = ("safety_checker", "feature_extractor", "image_encoder")


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory, tiny_backbone):
    root = tmp_path_factory.mktemp("conventions")
    encoder, _ = artefacts.make_encoder(root, tiny_backbone)
    encoder.save_pretrained(root / "encoder")
    return root / "encoder"


@pytest.fixture
def make(tiny_backbone, encoder_folder):
    """kind -> a pipeline with parts of its own."""

    def build(kind):
        parts = tiny.copied(tiny_backbone).pipeline().components
        cls = diffusers.StableDiffusionPipeline if kind == "stock" else ESCDiffPipeline
        pipeline = cls(**parts, requires_safety_checker=False)
        pipeline.set_progress_bar_config(disable=True)
        return ready(pipeline, kind)

    def ready(pipeline, kind):
        pipeline.set_progress_bar_config(disable=True)
        if kind != "stock":
            pipeline.set_encoder(encoder_folder)
        if kind == "concept":
            escdiff.load_concept(pipeline, make_concept(tiny_backbone))
        return pipeline

    build.ready = ready
    return build


def inputs(kind, **options):
    settings = {"num_inference_steps": 2, "guidance_scale": 6.0, "output_type": "np", "height": SIZE, "width": SIZE}
    return {"prompt": PROMPTS[kind], "generator": torch.Generator().manual_seed(0), **settings, **options}


def difference(a, b) -> float:
    return float(np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max())


@pytest.mark.parametrize("cls", [ESCDiffPipeline, ESCDiffXLPipeline])
def test_the_signature_is_the_stock_one_and_ours(cls):
    stock = inspect.signature(cls.__mro__[2].__call__).parameters
    found = inspect.signature(cls.__call__).parameters
    assert list(found)[: len(stock) - 1] == list(stock)[:-1] and list(found)[-1] == list(stock)[-1] == "kwargs"
    assert set(found) - set(stock) == OURS
    assert all(found[name].default == parameter.default for name, parameter in stock.items())
    assert all(found[name].kind is inspect.Parameter.KEYWORD_ONLY for name in OURS)
    assert {"prompt", "height", "guidance_scale", "callback_on_step_end"} <= set(found)
    assert "num_images_per_prompt" in cls.__call__.__doc__ and "strength" in cls.__call__.__doc__


def test_parts_and_types_are_the_stock_ones(make):
    ours, stock = make("ours"), make("stock")
    assert set(ours.components) == set(stock.components)
    assert ESCDiffPipeline._get_signature_keys(ESCDiffPipeline) == stock._get_signature_keys(type(stock))
    assert ours.config.keys() == stock.config.keys()
    again = diffusers.StableDiffusionPipeline(**ours.components, requires_safety_checker=False)
    again.set_progress_bar_config(disable=True)
    assert difference(again(**inputs("stock")).images, stock(**inputs("stock")).images) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_has_as_many_pictures_and_each_is_what_it_is_alone(make, kind):
    pipeline = make(kind)
    prompt = [PROMPTS[kind], "a cat", PROMPTS[kind]]
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    whole = pipeline(**inputs(kind, prompt=prompt, generator=generators)).images
    alone = pipeline(**inputs(kind)).images
    assert whole.shape == (3, SIZE, SIZE, 3) and difference(whole[0], alone[0]) < 1e-4
    assert difference(whole[0], whole[1]) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_per_prompt(make, kind):
    pipeline = make(kind)
    for batch, count in ((1, 1), (1, 2), (2, 2)):
        prompt = [PROMPTS[kind]] * batch
        images = pipeline(**inputs(kind, prompt=prompt, num_images_per_prompt=count)).images
        assert images.shape[0] == batch * count


@pytest.mark.parametrize("kind", KINDS)
def test_dict_and_tuple_are_equal_and_runs_repeat(make, kind):
    pipeline = make(kind)
    found = pipeline(**inputs(kind))
    pair = pipeline(**inputs(kind), return_dict=False)
    assert difference(found.images, pair[0]) == 0 and found.nsfw_content_detected is pair[1] is None
    assert difference(pipeline(**inputs(kind)).images, found.images) == 0
    other = pipeline(**inputs(kind, generator=torch.Generator().manual_seed(1))).images
    assert difference(other, found.images) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("output", ["pil", "pt", "latent"])
def test_outputs(make, kind, output):
    pipeline, expected = make(kind), make(kind)(**inputs(kind)).images
    found = pipeline(**inputs(kind, output_type=output)).images
    if output == "latent":
        assert tuple(found.shape) == (1, 8, SIZE // 8, SIZE // 8)
        return
    array = np.stack([np.asarray(p) / 255 for p in found]) if output == "pil" else found.permute(0, 2, 3, 1).numpy()
    assert difference(array, expected) < (1 / 254 if output == "pil" else 1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_given_latents_are_used(make, kind):
    pipeline = make(kind)
    latents = torch.randn(1, 8, SIZE // 8, SIZE // 8, generator=torch.Generator().manual_seed(0))
    assert difference(pipeline(**inputs(kind, latents=latents)).images, pipeline(**inputs(kind)).images) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_acts(make, kind):
    pipeline = make(kind)
    without = pipeline(**inputs(kind, guidance_scale=1.0))
    assert not pipeline.do_classifier_free_guidance
    with_guidance = pipeline(**inputs(kind, guidance_scale=6.0))
    assert pipeline.do_classifier_free_guidance and difference(without.images, with_guidance.images) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_callbacks_get_what_they_ask_for_and_may_change_it(make, kind):
    pipeline, seen = make(kind), []
    names = pipeline._callback_tensor_inputs

    def look(pipe, step, timestep, values):
        assert set(values) == {"latents"} and pipe is pipeline
        seen.append(step)
        return values

    def clear(pipe, step, timestep, values):
        assert set(values) == set(names)
        if step == 1:
            values["latents"] = torch.zeros_like(values["latents"])
        return values

    pipeline(**inputs(kind, callback_on_step_end=look, callback_on_step_end_tensor_inputs=["latents"]))
    assert seen == [0, 1]
    cleared = pipeline(
        **inputs(kind, callback_on_step_end=clear, callback_on_step_end_tensor_inputs=names, output_type="latent")
    )
    assert cleared.images.abs().sum() == 0
    with pytest.raises(ValueError, match="has to be in"):
        pipeline(**inputs(kind, callback_on_step_end=look, callback_on_step_end_tensor_inputs=["nonsense"]))


@pytest.mark.parametrize("kind", KINDS)
def test_a_callback_may_end_guidance(make, kind):
    pipeline = make(kind)

    def end(pipe, step, timestep, values):
        if step == 0:
            pipe._guidance_scale = 0.0
            values["prompt_embeds"] = values["prompt_embeds"][-1:]
        return values

    options = {"callback_on_step_end": end, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    assert pipeline(**inputs(kind, **options)).images.shape == (1, SIZE, SIZE, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_encoded_apart_give_the_same_picture(make, kind):
    pipeline = make(kind)
    positive, negative = pipeline.encode_prompt(PROMPTS[kind], torch.device("cpu"), 1, True)
    assert positive.shape == negative.shape and split(positive)[0].shape[1] % 77 == 0
    given = {"prompt": None, "prompt_embeds": positive, "negative_prompt_embeds": negative}
    assert difference(pipeline(**inputs(kind, **given)).images, pipeline(**inputs(kind)).images) < 1e-5
    with pytest.raises(ValueError, match="Cannot forward both"):
        pipeline(**inputs(kind, prompt_embeds=positive))


@pytest.mark.parametrize("kind", KINDS)
def test_encoded_prompts_need_no_text_encoder(make, kind):
    """Whoever has encoded the prompts may take the text encoder out, to free its memory."""
    pipeline = make(kind)
    expected = pipeline(**inputs(kind)).images
    positive, negative = pipeline.encode_prompt(PROMPTS[kind], torch.device("cpu"), 1, True)
    given = {"prompt": None, "prompt_embeds": positive, "negative_prompt_embeds": negative}
    text_encoder = weakref.ref(pipeline.text_encoder)
    pipeline.text_encoder = pipeline.tokenizer = None
    assert difference(pipeline(**inputs(kind, **given)).images, expected) < 1e-5
    gc.collect()
    assert text_encoder() is None


def test_without_a_text_encoder_a_concept_cannot_be_named(make, tiny_backbone):
    pipeline = make("concept")
    text_encoder, pipeline.text_encoder = pipeline.text_encoder, None
    with pytest.raises(UserError, match=r"no text encoder any more; give prompt_embeds="):
        pipeline(**inputs("concept"))
    with pytest.raises(UserError, match=r"no text encoder any more"):
        escdiff.load_concept(pipeline, make_concept(tiny_backbone), "mug")
    pipeline.text_encoder = text_encoder
    assert difference(pipeline(**inputs("concept")).images, make("concept")(**inputs("concept")).images) == 0


def test_encoded_prompts_need_no_text_encoder_of_sdxl():
    backbone = tiny.make_sdxl()
    pipeline = ESCDiffXLPipeline(**backbone.pipeline().components)
    pipeline.set_progress_bar_config(disable=True)
    escdiff.load_concept(pipeline, make_concept(backbone))
    expected = pipeline(**inputs("concept")).images
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    given = dict(zip(names, pipeline.encode_prompt(PROMPTS["concept"]), strict=True))
    for part in ("tokenizer_2", "text_encoder_2", "tokenizer", "text_encoder"):
        setattr(pipeline, part, None)
        assert difference(pipeline(**inputs("concept", prompt=None, **given)).images, expected) < 1e-5


@pytest.mark.parametrize("kind", ["stock", "ours"])
def test_parts_may_be_left_out_when_loading(make, kind, tmp_path):
    """As those do who encode prompts in one process and paint in another."""
    cls = type(make(kind))
    make("stock").save_pretrained(tmp_path)
    text = cls.from_pretrained(tmp_path, unet=None, vae=None, scheduler=None)
    rest = cls.from_pretrained(tmp_path, text_encoder=None, tokenizer=None)
    rest.set_progress_bar_config(disable=True)
    positive, negative = text.encode_prompt("a red mug", torch.device("cpu"), 1, True)
    given = {"prompt": None, "prompt_embeds": positive, "negative_prompt_embeds": negative}
    assert difference(rest(**inputs(kind, **given)).images, make("stock")(**inputs("stock")).images) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_paints_the_same(make, kind, tmp_path):
    pipeline, cls = make(kind), type(make(kind))
    pipeline.save_pretrained(tmp_path)
    again = cls.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    if kind == "concept":
        escdiff.load_concept(again, make_concept(tiny.make_backbone()))
    assert difference(again(**inputs(kind)).images, pipeline(**inputs(kind)).images) < 1e-5
    about = json.loads((tmp_path / "model_index.json").read_text(encoding="utf-8"))
    assert about["_class_name"] == "StableDiffusionPipeline" and about["requires_safety_checker"] is False
    assert all(again.components[name] is None for name in OPTIONAL)


@pytest.mark.parametrize("kind", KINDS)
def test_optional_parts_may_be_missing(make, kind, tmp_path):
    pipeline = make(kind)
    for name in pipeline._optional_components:
        setattr(pipeline, name, None)
    pipeline.save_pretrained(tmp_path)
    again = type(pipeline).from_pretrained(tmp_path, safety_checker=None)
    assert all(getattr(again, name) is None for name in pipeline._optional_components)
    assert make.ready(again, kind)(**inputs(kind)).images.shape == (1, SIZE, SIZE, 3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_variants_are_written_and_read(make, kind, tmp_path):
    pipeline = make(kind)
    pipeline.save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    again = make.ready(type(pipeline).from_pretrained(tmp_path, variant="fp16"), kind)
    assert difference(again(**inputs(kind)).images, pipeline(**inputs(kind)).images) < 1e-5
    with pytest.raises((UserError, OSError)):
        type(pipeline).from_pretrained(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_to_a_type_and_back_and_to_a_device(make, kind):
    pipeline = make(kind)
    parts = [part for part in pipeline.components.values() if isinstance(part, torch.nn.Module)]
    assert pipeline.to("cpu") is pipeline and pipeline.device == torch.device("cpu")
    for dtype in (torch.float16, torch.float32):
        assert pipeline.to(dtype) is pipeline and pipeline.dtype == dtype
        assert all(part.dtype == dtype for part in parts)
    assert not np.isnan(pipeline(**inputs(kind)).images).any()
    pipeline.to("meta")
    assert all(part.device == torch.device("meta") for part in parts)


def test_the_encoder_goes_where_the_pipeline_goes(make):
    """Of two devices, since this machine may have no accelerator: memory, and none."""
    pipeline = make("ours")
    encoder = pipeline.concept_encoder
    pipeline.to(torch.float16)
    assert encoder.embedding_scale.dtype == torch.float32  # it is small, and its words are compared with a text's
    pipeline.to("meta")
    devices = {tensor.device.type for tensor in (*encoder.state_dict().values(), *encoder.vision.parameters())}
    assert devices == {"meta"}


@pytest.mark.parametrize("kind", KINDS)
def test_slicing_and_offload_interfaces(make, kind):
    pipeline = make(kind)
    expected = pipeline(**inputs(kind)).images
    pipeline.enable_attention_slicing(slice_size=1)
    assert difference(pipeline(**inputs(kind)).images, expected) < 1e-3
    pipeline.vae.enable_slicing()
    pipeline.vae.enable_tiling()
    assert pipeline(**inputs(kind)).images.shape == expected.shape
    pipeline.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    assert difference(pipeline(**inputs(kind)).images, expected) > 1e-4
    pipeline.disable_freeu()


@pytest.mark.parametrize("kind", ["ours", "concept"])
def test_made_from_and_into_other_pipelines(make, kind):
    pipeline = make(kind)
    stock = diffusers.StableDiffusionPipeline.from_pipe(pipeline)
    stock.set_progress_bar_config(disable=True)
    back = make.ready(ESCDiffPipeline.from_pipe(stock), kind if kind == "ours" else "ours")
    plain = inputs("stock")
    assert difference(back(**plain).images, stock(**inputs("stock")).images) < 1e-5
    image = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(pipeline)
    assert type(image) is diffusers.StableDiffusionImg2ImgPipeline


def test_pickled_or_missing_files_end_in_one_sentence(make, tmp_path):
    pipeline = make("ours")
    with pytest.raises(UserError, match=r"could not be loaded|no backbone at"):
        ESCDiffPipeline.from_pretrained(tmp_path / "absent")
    pipeline.save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="could not be loaded.*expected 'mini', a diffusers folder"):
        ESCDiffPipeline.from_pretrained(tmp_path / "whole")
    diffusers.StableDiffusionPipeline(**pipeline.components, requires_safety_checker=False).save_pretrained(
        tmp_path / "pickled", safe_serialization=False
    )
    with pytest.raises(UserError, match="could not be loaded.*with safetensors weights"):
        ESCDiffPipeline.from_pretrained(tmp_path / "pickled")
    with pytest.raises(UserError, match=r"could not be loaded.*check the name and the connection"):
        ESCDiffPipeline.from_pretrained("someone/that-is-not-here", local_files_only=True)
