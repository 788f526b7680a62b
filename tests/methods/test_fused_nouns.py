"""FastComposer and PortraitBooth: what is fused where, their losses by hand, and concepts that come back."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import escdiff
from escdiff.backbone.adapters.attached import applied
from escdiff.backbone.adapters.fused import fuse_of, put_fuse
from escdiff.concept import Concept
from escdiff.conditioning.fuse import Fuse, fuse_at
from escdiff.control.objectives import localise
from escdiff.methods.fastcomposer import FastComposer
from escdiff.methods.portraitbooth import PortraitBooth
from escdiff.pipelines.generate import generate
from escdiff.support.errors import UserError
from escdiff.training.method.module import MethodModule
from escdiff.training.method.references import References

SURE = {"keep": 1.0, "drop": 0.0, "masked": 0.0}  # nothing at random


@pytest.fixture
def make(fresh, towers):
    """A method on a backbone of its own, with weights as if trained."""

    def build(kind, **settings):
        torch.manual_seed(0)
        tower = {"vision": str(towers[0])} if kind is FastComposer else {"embedding": 16}
        method = kind(fresh(), **tower, **settings)
        for parameter in method.kept:
            torch.nn.init.normal_(parameter, std=0.2)
        return method

    return build


@pytest.fixture
def batch():
    torch.manual_seed(1)
    masks = torch.zeros(2, 2, 128, 128)
    masks[0, 0, :, :64] = masks[0, 1, 32:96, 64:] = masks[1, 0, 32:96, 32:96] = 1
    return {
        "prompt": ["a photo of a <one> on a sad <two>", "a sad <one>"], "nouns": [["mug", "cube"], ["dog"]],
        "expressions": ["sad", "sad"], "latent": torch.randn(2, 16, 16, 16), "masks": masks,
        "references": torch.rand(2, 2, 3, 128, 128) * 2 - 1, "reference_masks": torch.ones(2, 2, 1, 128, 128),
    }  # fmt: skip


def step(method, batch, seed=0):
    """One step's loss, backward done, and its batch."""
    module = MethodModule(method, 1e-3, 10)
    module.on_fit_start()
    torch.manual_seed(seed)
    output, target, vectors, seen = module.denoise(batch, 0.0)
    terms = method.losses(output, target, vectors, seen)
    sum(terms.values()).backward()
    maps = {name: method.backbone.unet.get_submodule(name) for name in method.watch()}
    seen = {**seen, "output": output, "target": target, "average": seen["maps"].average() if maps else None}
    module.on_fit_end()
    return terms, seen


def learn_nothing(method, references, folder, **notes):
    """A concept of the first reference, as its file holds it."""
    method.start(References.read(references / "a.png", 128).pixels)
    method.export(folder, notes)
    return Concept.load(folder / "concept.safetensors")


def paint(pipeline, prompt, **options):
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    arguments = {"num_inference_steps": 5, "guidance_scale": 4.0, "generator": generator, "output_type": "np"}
    return pipeline(prompt, **arguments, **options).images[0]


def test_each_noun_gets_its_own_reference_and_nothing_else_moves(make, batch):
    method = make(FastComposer, **SURE)
    texts = ["a photo of a mug on a sad cube", "a sad dog"]
    grid = method.backbone.prompts.encode_plain(texts)[:, :, 0]
    seen = {**batch, "texts": method.texts(batch["prompt"])}
    encoded = method.backbone.prompts.encode(
        seen["texts"], {f"<{name}>": value for name, value in method.vectors(batch).items()}
    )[:, :, 0]
    assert torch.allclose(encoded, grid, atol=1e-5)  # the plain words
    out = method.fused(grid, seen)
    e = method.embeddings(batch)
    rows, positions = torch.tensor([0, 0, 1]), torch.tensor([5, 9, 3])
    expected = fuse_at(grid[:, 0], fuse_of(method.backbone.unet), rows, positions, e[[0, 0, 1], [0, 1, 0]], 1.0)
    assert torch.allclose(out[:, 0], expected)
    assert (out != grid).any(-1)[:, 0].nonzero().tolist() == [[0, 5], [0, 9], [1, 3]]
    method.keep = 0.0
    assert torch.equal(method.fused(grid, seen), grid)


def test_localisation_by_hand(make, batch):
    maps, masks = torch.rand(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
    masks[0, 0, :2] = masks[0, 1, 3, 1:3] = 1
    own = []
    for k in range(2):
        on = [maps[0, k, y, x] for y in range(4) for x in range(4) if masks[0, k, y, x]]
        off = [maps[0, k, y, x] for y in range(4) for x in range(4) if not masks[0, k, y, x]]
        own.append(sum(off) / len(off) - sum(on) / len(on))
    assert torch.allclose(localise(maps, masks), torch.stack([sum(own) / 2]), atol=1e-6)
    method = make(FastComposer, localised=0.5, **SURE)
    terms, seen = step(method, batch)
    total = []
    for row, subject, position in ((0, 0, 5), (0, 1, 9), (1, 0, 3)):
        found = seen["average"][row, :, :, position]
        mask = F.interpolate(batch["masks"][row, subject][None, None], found.shape, mode="area")[0, 0]
        total.append((found * (1 - mask)).sum() / (1 - mask).sum() - (found * mask).sum() / mask.sum())
    assert torch.allclose(terms["localisation"], 0.5 * sum(total) / 3, atol=1e-6)
    plain = (seen["output"] - seen["target"]).square().mean()
    assert torch.allclose(terms["denoising"], plain)


def test_the_error_within_the_subjects(make, batch):
    method = make(FastComposer, localised=0.0, **{**SURE, "masked": 1.0})
    terms, seen = step(method, batch)
    union = F.interpolate(batch["masks"].amax(1, keepdim=True), (16, 16), mode="area")
    error = ((seen["output"] - seen["target"]).square().mean(1, keepdim=True) * union).sum((1, 2, 3))
    assert torch.allclose(terms["denoising"], (error / union.sum((1, 2, 3))).mean())


@pytest.mark.parametrize("kind", [FastComposer, PortraitBooth])
def test_gradients_reach_all_that_is_learned_and_nothing_frozen(make, batch, kind):
    method = make(kind, **SURE)
    step(method, batch)
    own = {id(p) for p in method.parameters()}
    assert not [name for name, p in method.named_parameters() if p.requires_grad and p.grad is None]
    for part in method.backbone.modules():
        assert all(p.grad is None for p in part.parameters() if id(p) not in own)


def test_without_its_losses_portraitbooth_is_fastcomposers_fuse_of_another_embedding(make, batch, monkeypatch):
    portrait = make(PortraitBooth, dip=0.0, ecac=0.0, **SURE)
    monkeypatch.setattr(PortraitBooth, "watch", lambda self: ())
    terms, _ = step(portrait, batch)
    embeddings = portrait.embeddings(batch)
    other = make(FastComposer, depths=(3,), localised=0.0, init="face", **SURE)
    monkeypatch.setattr(FastComposer, "embeddings", lambda self, _: embeddings)
    fuse_of(other.backbone.unet).load_state_dict(fuse_of(portrait.backbone.unet).state_dict())
    lora = {n: p for n, p in portrait.backbone.unet.named_parameters() if ".lora_" in n}
    for name, parameter in other.backbone.unet.named_parameters():
        if name in lora:
            parameter.data.copy_(lora[name])
    theirs, _ = step(other, batch)
    assert theirs.keys() == {"denoising"} and torch.equal(theirs["denoising"], terms["denoising"])
    grads = {n: p.grad for n, p in portrait.backbone.unet.named_parameters() if p.grad is not None}
    found = {n: p.grad for n, p in other.backbone.unet.named_parameters() if p.grad is not None}
    assert found.keys() == grads.keys() and all(torch.equal(found[n], grads[n]) for n in grads)


def test_identity_and_attention_losses_by_hand(make, batch, monkeypatch):
    method = make(PortraitBooth, dip=0.7, ecac=0.3, low_noise=600, **SURE)
    monkeypatch.setattr(MethodModule, "draw", lambda *_: (torch.tensor([100, 900]), torch.zeros(2, dtype=torch.long)))
    terms, seen = step(method, batch)
    bar = method.backbone.noise.schedule.alphas_cumprod[100]  # the tiny backbone predicts the noise
    x0 = (seen["noisy"][:1] - (1 - bar).sqrt() * seen["output"][:1]) / bar.sqrt()
    mean = batch["latent"][:1, :8] * method.backbone.vae.config.scaling_factor
    cosine = torch.cosine_similarity(method.recogniser(x0), method.recogniser(mean))
    assert torch.allclose(terms["identity"], 0.7 * (1 - cosine[0]), atol=1e-6)
    face, inner = [], []
    for row, subject, position in ((0, 0, 5), (0, 1, 9), (1, 0, 3)):
        found = seen["average"][row, :, :, position]
        mask = F.interpolate(batch["masks"][row, subject][None, None], found.shape, mode="area")[0, 0]
        face.append((found / (found.max() + 1e-8) - mask).square().mean())
    for row, position in ((0, 8), (1, 2)):
        found = seen["average"][row, :, :, position]
        mask = F.interpolate(batch["masks"][row, 0][None, None], found.shape, mode="area")[0, 0]
        inner.append((1 - (found * mask).sum() / (found.sum() + 1e-8)).square())
    assert torch.allclose(terms["attention"], 0.3 * (sum(face) / 3 + sum(inner) / 2), atol=1e-6)
    a = method.recogniser(method.latents(batch["references"][:, 0]))
    b = method.recogniser(batch["latent"][:, :8] * method.backbone.vae.config.scaling_factor)
    cos = torch.cat([a, b]) @ torch.cat([a, b]).T / 0.1
    each = [-(cos[i, j] - torch.logsumexp(cos[i, [j, *(k for k in range(4) if k not in (i, j))]], 0))
            for i, j in ((0, 2), (2, 0), (1, 3), (3, 1))]  # fmt: skip
    assert torch.allclose(terms["likeness"], sum(each) / 4, atol=1e-5)


def test_the_recogniser_learns_first_and_rests_then(make):
    method = make(PortraitBooth, warmup=0.25)
    first, second = method.phases(1e-3)
    own = {id(p) for p in method.recogniser.parameters()}
    assert (first.share, second.share) == (0.25, 0.75) and {id(p) for p in first.parameters} == own
    every = {id(p) for p in method.parameters() if p.requires_grad}
    assert {id(p) for p in second.parameters} == every - own and every > own


@pytest.mark.slow
def test_no_strength_is_the_stock_prompt_and_the_stage_is_a_callback_that_swaps_embeddings(
    make, fresh, references, tmp_path
):
    concept = learn_nothing(make(FastComposer, init="mug", plain=0.4), references, tmp_path)
    assert concept.space.stage_bounds == (0, 600, 1000) and concept.gates["concept"].tolist() == [[1.0, 0.0]]
    prompt, backbone = "a photo of a <concept> on a beach", fresh()
    pipeline = backbone.pipeline()
    file = tmp_path / "concept.safetensors"
    with applied(backbone, [concept], [tmp_path]):  # its keys and values act whether or not something is fused
        plain = paint(pipeline, "a photo of a mug on a beach")
        states = backbone.prompts.encode_plain(["a photo of a mug on a beach"])[:, 0, 0]
        fused = fuse_at(
            states, fuse_of(backbone.unet), torch.tensor([0]), torch.tensor([5]), concept.fused["concept"][None], 1.0
        )

        def swap(pipe, index, timestep, values):
            following = pipe.scheduler.timesteps[min(index + 1, 4)]
            if following < 600:
                values["prompt_embeds"] = torch.cat([values["prompt_embeds"][:1], fused.to(values["prompt_embeds"])])
            return values

        inputs = ["prompt_embeds"]
        swapped = paint(pipeline, "a photo of a mug on a beach", callback_on_step_end=swap,
                        callback_on_step_end_tensor_inputs=inputs)  # fmt: skip
        ours = generate(backbone, [prompt], concept, steps=5, guidance=4.0, seeds=[3])[0]
    escdiff.load_concept(pipeline, file, strength=0.0)
    assert np.array_equal(paint(pipeline, prompt), plain)
    escdiff.unload_concept(pipeline)
    escdiff.load_concept(pipeline, file)
    found = paint(pipeline, prompt)
    assert np.abs(found - swapped).max() < 0.01 * np.abs(found - plain).max()  # a batch rounds otherwise
    assert np.abs((found * 255).round() - np.asarray(ours, float)).max() <= 1
    escdiff.unload_concept(pipeline)
    assert fuse_of(backbone.unet) is None


def test_words_of_another_width(fresh):
    unet = fresh().unet
    with pytest.raises(UserError, match="fuses words of width 24, and this U-Net reads words of width 32; paint with"):
        put_fuse(unet, Fuse(24, 8).state_dict(), "a/fuse.safetensors")
    assert fuse_of(unet) is None


@pytest.mark.slow
def test_two_concepts_of_one_method_in_one_prompt(make, fresh, references, tmp_path):
    method = make(FastComposer, plain=0.0)
    files = {}
    for name in ("a", "b"):
        method.start(References.read(references / f"{name}.png", 128).pixels)
        method.export(tmp_path / name)
        files[name] = tmp_path / name / "concept.safetensors"
    backbone = fresh()
    pipeline = backbone.pipeline()
    for name, file in files.items():
        escdiff.load_concept(pipeline, file, name=name)
    embeds, _ = pipeline.encode_prompt("a <a> beside a <b>", "cpu", 1, False)
    words = backbone.prompts.encode_plain(["a object beside a object"])[:, 0, 0]
    e = torch.stack([Concept.load(file).fused["concept"] for file in files.values()])
    expected = fuse_at(words, fuse_of(backbone.unet), torch.tensor([0, 0]), torch.tensor([2, 5]), e, 1.0)
    assert torch.allclose(embeds, expected, atol=1e-6)
    assert sum(".lora_A" in name for name, _ in backbone.unet.named_parameters()) == 32  # one adapter, not two
    assert paint(pipeline, "a <a> beside a <b>").shape == (128, 128, 3)
    escdiff.unload_concept(pipeline)
    other = make(FastComposer, plain=0.0, depths=(2,))
    other.start(References.read(references / "a.png", 128).pixels)
    other.export(tmp_path / "other")
    escdiff.load_concept(pipeline, files["a"], name="a")
    with pytest.raises(UserError, match="fused words already"):
        escdiff.load_concept(pipeline, tmp_path / "other" / "concept.safetensors", name="other")
    with pytest.raises(UserError, match="no weights"):
        concept = Concept.load(files["a"])
        concept.notes.pop("adapter")
        escdiff.load_concept(fresh().pipeline(), concept)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fastcomposer", "portraitbooth"])
def test_learn_from_rendered_subjects_then_customize(fit, towers, backbone, references, tmp_path, monkeypatch, name):
    from escdiff.mini.data import subjects

    monkeypatch.setattr(subjects, "PER_CHUNK", 4)
    settings = ["method.embedding=16"] if name == "portraitbooth" else [f"method.vision={towers[0]}"]
    world = [f"data.root={tmp_path / 'world'}", "data.num_samples=4", "data.size=128"]
    learned = fit(name, *settings, *world, source=None, folder="learned") / "export"
    source = references / "a.png"
    made = fit(name, *settings, f"init={learned}", source=source, folder="made") / "export"
    concept = Concept.load(made / "concept.safetensors")
    assert concept.notes["shared_weights"] == "yes" and concept.fused["concept"].abs().sum() > 0
    with applied(backbone, [concept], [made]):
        assert generate(backbone, ["a <concept>"], concept, steps=1)[0].size == (128, 128)
