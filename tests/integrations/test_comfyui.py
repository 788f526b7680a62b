"""The ComfyUI nodes, against a stand-in of ComfyUI's public interfaces (`comfy_stand_in.py` states them)."""

import importlib.util
import sys
import tomllib
from pathlib import Path

import artefacts
import comfy_stand_in as comfy
import numpy as np
import pytest
import tiny
import torch
from painting import make_concept
from PIL import Image

import escdiff
from escdiff.concept import Concept
from escdiff.conditioning.grid import pack
from escdiff.data.pictures import to_mask
from escdiff.sharing.blocks import block_of
from escdiff.sharing.comfy import apply_concept, attn2_patch, encode_picture, read_curve, strengthen
from escdiff.sharing.comfy_prompt import encode_prompt
from escdiff.support.errors import UserError

PACKAGE = Path(__file__).parents[2] / "integrations" / "comfyui"
PROMPT = "a photo of a <appearance> <shape> on a beach"


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (40, 60, 3), np.uint8)


def as_image(pixels: np.ndarray):
    return torch.from_numpy(pixels).float()[None] / 255


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    """The package as ComfyUI imports a folder of custom_nodes."""
    monkeypatch.setitem(sys.modules, "folder_paths", comfy.make_folder_paths(tmp_path / "models"))
    monkeypatch.delitem(sys.modules, "custom_nodes_escdiff.nodes", raising=False)
    spec = importlib.util.spec_from_file_location("custom_nodes_escdiff", PACKAGE / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module.NODE_CLASS_MAPPINGS


def clip_of(backbone) -> comfy.CLIP:
    towers = {"l": (backbone.tokenizer, backbone.text_encoder)}
    if backbone.text_encoder_2 is not None:
        towers["g"] = (backbone.tokenizer_2, backbone.text_encoder_2)
    return comfy.CLIP(towers)


def record(unet, run) -> list[dict[str, torch.Tensor]]:
    """What the keys of each cross-attention are made of, call by call of the U-Net."""
    calls, handles = [], [unet.register_forward_pre_hook(lambda *_: calls.append({}))]
    for name, layer in unet.named_modules():
        if name.endswith(".attn2"):
            hook = lambda module, args, name=name: calls[-1].__setitem__(name, args[0].clone())  # noqa: E731
            handles.append(layer.to_k.register_forward_pre_hook(hook))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return calls


def ours(backbone, concept, latents, steps=2, prompt=PROMPT, negative="blurry, low quality"):
    pipeline = backbone.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    escdiff.load_concept(pipeline, concept)
    try:
        return pipeline(prompt, negative_prompt=negative, num_inference_steps=steps, guidance_scale=7.5,
                        latents=latents, output_type="latent").images  # fmt: skip
    finally:
        escdiff.unload_concept(pipeline)


def noise(seed=0):
    return torch.randn(1, tiny.LATENT_CHANNELS, 16, 16, generator=torch.Generator().manual_seed(seed))


def test_the_workflow_runs_headless_and_each_layer_reads_what_our_pipelines_reads(nodes, tiny_backbone, tmp_path):
    encoder, _ = artefacts.make_encoder(tmp_path, tiny_backbone)
    encoder.save_pretrained(tmp_path / "models" / "escdiff" / "encoders" / "sd15")
    pixels = {"mug.png": picture(1), "rocket.png": picture(2)}
    pictures = {name: (as_image(value), torch.zeros(1, 64, 64)) for name, value in pixels.items()}
    stock, results = comfy.stock_nodes(tiny_backbone, pictures)
    workflow = PACKAGE / "example_workflows" / "escdiff_swap.json"
    outputs = {}
    theirs = record(tiny_backbone.unet, lambda: outputs.update(
        comfy.run_workflow(workflow, stock | nodes, {("KSampler", "steps"): 2})))  # fmt: skip

    shape, appearance = (encoder.encode(Image.fromarray(pixels[name])) for name in ("mug.png", "rocket.png"))
    concept = Concept.combine(shape=shape.only("shape"), appearance=appearance.only("appearance"))
    mixed = outputs[7][0]
    assert all(torch.equal(mixed.vectors[name], concept.vectors[name]) for name in ("shape", "appearance"))
    saved = Concept.load(tmp_path / "models" / "escdiff" / "concepts" / "mug-rocket.safetensors")
    assert torch.equal(saved.vectors["shape"], concept.vectors["shape"])

    made = {}
    calls = record(tiny_backbone.unet, lambda: made.update(latents=ours(tiny_backbone, concept, noise())))
    assert len(calls) == 2 and len(theirs) == 4  # ComfyUI runs conditionings of different lengths apart
    for step, call in enumerate(calls):
        positive, negative = theirs[2 * step], theirs[2 * step + 1]
        assert set(call) == set(positive) == set(concept.space.layer_names)
        for layer, both in call.items():
            torch.testing.assert_close(positive[layer][0], both[1], atol=1e-5, rtol=0)
            torch.testing.assert_close(negative[layer][0], both[0], atol=1e-5, rtol=0)
    first, last = (calls[0][layer][1] for layer in (concept.space.layer_names[0], concept.space.layer_names[-1]))
    assert (first - last).abs().max() > 1e-2  # the layers do read different words
    torch.testing.assert_close(results.latents, made["latents"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("options", "prompt"), [
    ({}, "a <concept>, a <shape>"), ({"layers": "tied"}, PROMPT),
    ({"stages": 2}, PROMPT), ({"layers": "tied", "stages": 3}, PROMPT),
])  # fmt: skip
def test_every_space(options, prompt, tiny_backbone):
    concept, model = make_concept(tiny_backbone, **options), comfy.Model(tiny_backbone.unet, tiny_backbone.scheduler)
    patched, positive = apply_concept(model, clip_of(tiny_backbone), concept, prompt)
    assert not model.patches  # the model that came in is as it was
    clip = clip_of(tiny_backbone)
    negative = [[clip.encode_from_tokens(clip.tokenize("blurry, low quality")), {}]]
    theirs = comfy.sample(patched, positive, negative, noise(), 4, 7.5)
    torch.testing.assert_close(theirs, ours(tiny_backbone, concept, noise(), 4, prompt), atol=1e-4, rtol=1e-4)


def test_conditionings_of_others_pass_unchanged(tiny_backbone):
    patch = attn2_patch(make_concept(tiny_backbone).space)
    for length in (77, 2 * 77, 16 * 77):
        n, context = torch.zeros(1, 4, 8), torch.randn(1, length, 32)
        found = patch(n, context, context, {"block": ("input", 1), "block_index": 0})
        assert found[1] is context and found[2] is context
    packed = pack(torch.randn(1, 16, 77, 32))
    with pytest.raises(UserError, match=r"no words for the layer \('input', 3, 0\)"):
        patch(None, packed, packed, {"block": ("input", 3), "block_index": 0})


def test_sdxls_two_encoders(monkeypatch):
    monkeypatch.setattr("escdiff.sharing.comfy_prompt.TOWERS", {"clip_l": 32, "clip_g": 48})
    backbone = tiny.make_sdxl()
    concept = make_concept(backbone)
    grid, pooled = encode_prompt(clip_of(backbone), concept, PROMPT)
    expected, expected_pooled = backbone.prompts.encode_pooled([PROMPT], concept.placeholders())
    torch.testing.assert_close(grid, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(pooled, expected_pooled, atol=1e-5, rtol=0)
    patched, ((packed, more),) = apply_concept(comfy.Model(backbone.unet, backbone.scheduler), clip_of(backbone),
                                               concept, PROMPT)  # fmt: skip
    for cell, names in enumerate(concept.space.cells):
        kind, number, index = block_of(names[-1])
        own = patched.patches[0](None, packed, packed, {"block": (kind, number), "block_index": index})[1]
        torch.testing.assert_close(own, expected[:, cell, 0], atol=1e-5, rtol=0)
    assert torch.equal(more["pooled_output"], pooled) and more["cross_attn_controlnet"].shape == (1, 77, 80)


def test_emphasis_and_long_prompts_are_the_hosts(tiny_backbone):
    concept, clip = make_concept(tiny_backbone), clip_of(tiny_backbone)
    plain, strong = (encode_prompt(clip, concept, text)[0] for text in ("a <shape> mug", "a (<shape>:1.5) mug"))
    empty = clip.encode_from_tokens(clip.tokenize(""))[0]
    slots = slice(2, 4)  # behind the start and "a"
    expected = empty[slots] + 1.5 * (plain[0, :, 0, slots] - empty[slots])
    torch.testing.assert_close(strong[0, :, 0, slots], expected, atol=1e-5, rtol=0)
    assert torch.equal(strong[0, :, 0, 4:], plain[0, :, 0, 4:])
    long = "word " * 90 + "<shape>"
    model, ((packed, _),) = apply_concept(comfy.Model(tiny_backbone.unet, tiny_backbone.scheduler), clip, concept, long)
    assert encode_prompt(clip, concept, long)[0].shape == (1, 16, 1, 154, 32)
    own = model.patches[0](None, packed, packed, {"block": ("middle", 0), "block_index": 0})[1]
    assert torch.equal(own, encode_prompt(clip, concept, long)[0][:, 6, 0])


def test_the_word_that_stands_for_vectors_is_not_one_of_the_prompts(tiny_backbone):
    concept, clip = make_concept(tiny_backbone), clip_of(tiny_backbone)
    text = "a photo of a sks <shape>"
    expected = tiny_backbone.prompts.encode([text], concept.placeholders())
    torch.testing.assert_close(encode_prompt(clip, concept, text)[0], expected, atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="has all of sks, ohwx, olis"):
        encode_prompt(clip, concept, "sks ohwx olis <shape>")


def test_strengths_and_curves(tiny_backbone):
    concept = make_concept(tiny_backbone)
    assert read_curve("", 16).tolist() == [1.0] * 16
    assert read_curve("1, 0", 3).tolist() == [1.0, 0.5, 0.0] and read_curve("0 1;0", 5).tolist() == [0, 0.5, 1, 0.5, 0]
    curve = ", ".join(str(i % 2) for i in range(16))
    found = strengthen(concept, {"shape": 0.5}, curve)
    for name, strength in (("shape", 0.5), ("appearance", 1.0)):
        anchor, vectors = concept.anchors[name], concept.vectors[name]
        assert torch.equal(found.vectors[name][0, 0], anchor)
        torch.testing.assert_close(found.vectors[name][1, 0], anchor + strength * (vectors[1, 0] - anchor))
    for text, words in (("a, b", "expected numbers with commas"), ("1 " * 17, "17 numbers; expected at most 16")):
        with pytest.raises(UserError, match=words):
            read_curve(text, 16)


def test_masks_are_white_on_the_object_and_black_ones_are_none(tiny_backbone, tmp_path):
    encoder, _ = artefacts.make_encoder(tmp_path, tiny_backbone)
    image, mask = as_image(picture(1)), torch.zeros(1, 40, 60)
    whole = encode_picture(encoder, image, "shape")
    assert whole.attributes == ("shape",)
    assert torch.equal(encode_picture(encoder, image, "shape", mask).vectors["shape"], whole.vectors["shape"])
    mask[:, :, 10:30] = 1
    masked = encode_picture(encoder, image, "shape", mask).vectors["shape"]
    assert not torch.equal(masked, whole.vectors["shape"])
    drawn = Image.fromarray((mask[0].numpy() * 255).astype(np.uint8))
    expected = encoder.encode(Image.fromarray(picture(1)), to_mask(drawn, 32), ("shape",))
    assert torch.equal(masked, expected.vectors["shape"])
    with pytest.raises(UserError, match="2 pictures were given"):
        encode_picture(encoder, torch.cat([image, image]))


def test_concept_files(nodes, tiny_backbone, tmp_path):
    concept = make_concept(tiny_backbone)
    save, load = nodes["ESCDiffSaveConcept"]().save, nodes["ESCDiffLoadConcept"]
    save(concept, "things/mug", False)
    assert load.INPUT_TYPES()["required"]["file"][0] == ["things/mug.safetensors"]
    (again,) = load().load("things/mug.safetensors")
    assert torch.equal(again.vectors["shape"], concept.vectors["shape"])
    before = load.IS_CHANGED("things/mug.safetensors")
    with pytest.raises(UserError, match="is there already"):
        save(concept, "things/mug", False)
    save(concept, "things/mug", True)
    assert load.IS_CHANGED("things/mug.safetensors") >= before
    with pytest.raises(UserError, match="leads out of"):
        save(concept, "../mug", False)
    with pytest.raises(UserError, match="no 'cup.safetensors' in .*concepts; put it there"):
        load().load("cup.safetensors")
    assert nodes["ESCDiffLoadEncoder"].INPUT_TYPES()["required"]["file"][0] == []


def test_what_does_not_go_together_is_refused_in_a_sentence(tiny_backbone):
    concept, clip = make_concept(tiny_backbone), clip_of(tiny_backbone)
    for text, words in (("a mug", "names no concept; this one has <shape>"), ("a <dog>", "unknown placeholder <dog>")):
        with pytest.raises(UserError, match=words):
            encode_prompt(clip, concept, text)
    with pytest.raises(UserError, match="text encoders x, y"):
        encode_prompt(comfy.CLIP(dict.fromkeys("xy", clip.towers["l"])), concept, PROMPT)
    concept.branches = {"encoder": "me/enc", "hash": "1"}
    with pytest.raises(UserError, match="needs weights in the U-Net besides words"):
        apply_concept(None, clip, concept, PROMPT)


def test_the_package_is_one_that_the_registry_takes(nodes):
    about = tomllib.loads((PACKAGE / "pyproject.toml").read_text(encoding="utf-8"))
    assert about["tool"]["comfy"].keys() >= {"PublisherId", "DisplayName"} and about["project"]["name"] == "escdiff"
    licence = (PACKAGE / "LICENSE").read_text(encoding="utf-8")
    assert about["project"]["license"] == {"file": "LICENSE"} and "Apache" in licence
    for node in nodes.values():
        types = node.INPUT_TYPES()
        assert callable(getattr(node, node.FUNCTION)) and isinstance(types["required"], dict) and node.CATEGORY
