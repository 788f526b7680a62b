"""A training step's loss against plain lines that a reader can check (see `objectives.py`)."""

import objectives as plain
import pytest
import torch
from objectives import CHANNELS, DRAWS, TERMS, make_backbone, make_batch, make_module

from escdiff.methods.dreambooth import DreamBooth
from escdiff.methods.ti import TI
from escdiff.methods.xti import XTI
from escdiff.training.encoder.module import MASKS
from escdiff.training.method.module import MethodModule
from escdiff.training.method.references import Prior, ReferenceData, References

ATTRIBUTES = ("shape", "appearance")


@pytest.fixture(params=["epsilon", "v_prediction"])
def backbone(request, tiny_backbone):
    return make_backbone(request.param, tiny_backbone)


@pytest.fixture
def batch():
    return make_batch()


def take_step(module, batch):
    """A step's loss and what its U-Net was called with."""
    module.on_fit_start()
    torch.manual_seed(5)  # a draw of timesteps from several stages
    with plain.watched(module.backbone.unet) as seen:
        out = module.training_step(batch, 0)
    module.on_fit_end()
    return out, seen


def features_of(encoder, batch, whole=False):
    """Each filter's features of its own reference, and of the target."""
    masks = {name: torch.ones_like(batch[name]) if whole else batch[name] for name in MASKS}
    found = {}
    for attribute in ATTRIBUTES:
        depths = getattr(encoder.config, f"{attribute}_depths")
        for name, pixels, mask in (
            (attribute, f"{attribute}_ref", f"{attribute}_mask"),
            (f"target {attribute}", "pixels", "mask"),
        ):
            tokens = encoder.vision(batch[pixels])
            found[name] = encoder.filters[attribute]([tokens[depth] for depth in depths], masks[mask])
    return found


def regular_terms(encoder, found, residuals):
    """Of features and residuals, weighted as `TERMS` says; pairs are due every other step, so twice as strong."""
    scale = encoder.embedding_scale
    terms = 2 * TERMS["invariance"] * sum(plain.invariance(found[a], found[f"target {a}"]) for a in ATTRIBUTES)
    terms += 2 * TERMS["independence"] * plain.independence(found["target shape"], found["target appearance"])
    for a in ATTRIBUTES:
        terms += 2 * TERMS["instances"] * plain.instances(found[a], found[f"target {a}"], plain.INSTANCES[a])
    return terms + TERMS["residual"] * sum((residuals[a] / scale).square().mean() for a in ATTRIBUTES)


def word_term(module, residuals, batch):
    """Squared distance of the ungated vectors from the caption's words, over the samples that have words."""
    total = 0.0
    for attribute in ATTRIBUTES:
        distances = []
        for residual, phrase in zip(residuals[attribute], batch[f"{attribute}_words"], strict=True):
            if phrase:
                vectors = module.encoder.anchor(attribute) + residual  # (L, S, K, D)
                words = module.backbone.prompts.spread(phrase, vectors.shape[2])
                distances.append((vectors - words).square().sum(-1).mean() / module.encoder.embedding_scale**2)
        total = total + torch.stack(distances).mean()
    return TERMS["words"] * total


def denoising_terms(module, vectors, texts, batch, seen):
    encoder, backbone = module.encoder, module.backbone
    grid = backbone.prompts.encode(texts, {f"<{a}>": v for a, v in vectors.items()})  # (B, L, S, T, D)
    rows = torch.arange(len(texts)).repeat_interleave(DRAWS)  # noised copies of a sample stand side by side
    latents = (batch["latent"][:, :CHANNELS] * backbone.vae.config.scaling_factor)[rows]
    error = plain.errors(backbone, encoder.space, grid[rows], latents, seen.noisy[0], seen.timesteps[0])
    return error.mean() + TERMS["mask"] * plain.within(error, batch["mask"][rows]), error.mean((1, 2, 3))


def gated(encoder, residuals):
    gates = {a: torch.sigmoid(encoder.gate_logits[a])[..., None, None] for a in ATTRIBUTES}
    return {a: encoder.anchor(a) + gates[a] * residuals[a] for a in ATTRIBUTES}, gates


def residuals_of(encoder, found):
    return {a: encoder.heads[a](found[a]) * encoder.embedding_scale for a in ATTRIBUTES}


@pytest.mark.parametrize("stages", [1, 2])
def test_a_step_of_the_encoder_is_its_plain_lines(backbone, batch, monkeypatch, stages):
    module = make_module(backbone, monkeypatch, stages=stages)
    encoder = module.encoder
    out, seen = take_step(module, batch)
    found = features_of(encoder, batch)
    residuals = residuals_of(encoder, found)
    vectors, gates = gated(encoder, residuals)
    denoising, error = denoising_terms(module, vectors, batch["prompt"], batch, seen)
    expected = denoising + regular_terms(encoder, found, residuals) + word_term(module, residuals, batch)
    expected = expected + TERMS["gates"] * sum(gate.mean() for gate in gates.values())
    assert_close(out["loss"], expected)
    assert_close(out["error"], error)
    assert torch.equal(out["timesteps"], seen.timesteps[0])
    assert encoder.space.stage_of(out["timesteps"]).unique().numel() == stages
    assert_close(sum(value for name, value in out["logs"].items() if "/" not in name), expected)


@pytest.mark.parametrize("dropped", ATTRIBUTES)
def test_what_is_dropped_is_a_learned_null_and_bare_placeholders_and_whole_pictures(
    backbone, batch, monkeypatch, dropped
):
    drops = {f"drop_{name}": 1.0 for name in (dropped, "text", "mask")}
    module = make_module(backbone, monkeypatch, step=7, **drops)  # between two steps with pairs
    encoder = module.encoder
    out, seen = take_step(module, batch)
    residuals = residuals_of(encoder, features_of(encoder, batch, whole=True))
    null = encoder.nulls[dropped] * encoder.embedding_scale
    residuals[dropped] = null.expand_as(residuals[dropped])
    vectors, gates = gated(encoder, residuals)
    texts = ["<appearance> <shape>", "<shape> <appearance>,", "<shape>"]
    expected = denoising_terms(module, vectors, texts, batch, seen)[
        0
    ]  # samples with a null have no words to be near to
    expected = expected + TERMS["gates"] * sum(gate.mean() for gate in gates.values())
    scale = encoder.embedding_scale
    expected = expected + TERMS["residual"] * sum((residuals[a] / scale).square().mean() for a in ATTRIBUTES)
    assert_close(out["loss"], expected)


def test_a_step_on_words_alone_has_neither_gates_nor_diffusion(backbone, batch, monkeypatch):
    module = make_module(backbone, monkeypatch, step=4)
    out, seen = take_step(module, batch)
    found = features_of(module.encoder, batch)
    residuals = residuals_of(module.encoder, found)
    expected = regular_terms(module.encoder, found, residuals) + word_term(module, residuals, batch)
    assert_close(out["loss"], expected)
    assert not seen.noisy


def test_a_validation_step_of_the_encoder_drops_nothing(backbone, batch, monkeypatch):
    drops = dict.fromkeys(("drop_shape", "drop_appearance", "drop_text"), 1.0)
    module = make_module(backbone, monkeypatch, cells=2, **drops)
    module.on_fit_start()
    with plain.watched(module.backbone.unet) as seen, torch.no_grad():
        out = module.validation_step(batch, 0)
    vectors, _ = gated(module.encoder, residuals_of(module.encoder, features_of(module.encoder, batch)))
    _, error = denoising_terms(module, vectors, batch["prompt"], batch, seen)
    module.on_fit_end()
    assert_close(out["error"], error)
    assert torch.equal(out["timesteps"], seen.timesteps[0])


def method_error(module, vectors, texts, batch, seen):
    """Squared error per sample, each text encoded on its own."""
    backbone, space = module.backbone, module.method.space
    grid = torch.cat([backbone.prompts.encode([text], vectors) for text in texts])
    latents = batch["latent"][:, :CHANNELS] * backbone.vae.config.scaling_factor
    error = plain.errors(backbone, space, grid, latents, seen.noisy[0], seen.timesteps[0])
    return error.mean((1, 2, 3))


@pytest.mark.parametrize("kind", ["tied", "layers", "stages"])
def test_a_step_of_a_method_is_its_plain_lines(backbone, batch, kind):
    made = {"tied": lambda: TI(backbone), "layers": lambda: XTI(backbone), "stages": lambda: TI(backbone, stages=3)}
    method = made[kind]()
    torch.nn.init.normal_(method.table)
    module = MethodModule(method, 1e-3, 10)
    texts = ["a photo of a <concept>", "one <concept>, blurred", "a photo of a <concept>"]
    out, seen = take_step(module, {"latent": batch["latent"], "prompt": texts})
    anchor = method.anchor("concept")
    vectors = method.table * anchor.norm(dim=-1, keepdim=True) / method.table.norm(dim=-1, keepdim=True)
    error = method_error(module, {"<concept>": vectors[None]}, texts, batch, seen)
    assert_close(out["error"], error)
    assert_close(out["loss"], error.mean())
    assert (method.space.stage_of(out["timesteps"]).unique().numel() > 1) == (kind == "stages")
    module.on_fit_start()
    with plain.watched(module.backbone.unet) as seen, torch.no_grad():
        out = module.validation_step({"latent": batch["latent"], "prompt": texts}, 0)
    module.on_fit_end()
    assert_close(out["error"], method_error(module, {"<concept>": vectors[None]}, texts, batch, seen))


def test_the_prior_of_a_method_is_weighted(backbone, batch):
    method = DreamBooth(backbone, prior_weight=0.3)
    module = MethodModule(method, 1e-3, 10)
    texts = ["a photo of a <concept>", "a photo of a object", "a photo of a object"]
    given = {"latent": batch["latent"], "prompt": texts, "weight": torch.tensor([1.5, 0.3, 0.3])}
    out, seen = take_step(module, given)
    error = method_error(module, {"<concept>": method.anchor("concept")[None, None, None]}, texts, batch, seen)
    assert_close(out["loss"], (1.5 * error[0] + 0.3 * error[1] + 0.3 * error[2]) / 3)


def test_half_of_a_batch_with_a_prior_is_the_prior(tiny_backbone, batch):
    """Means over each half, so that the loss is instance + weight * prior (DreamBooth, eq. 2)."""
    method = DreamBooth(make_backbone("epsilon", tiny_backbone))
    prior = Prior(["a photo of a object"], batch["latent"][:1], weight=0.3)
    data = ReferenceData(method, References(["a"], batch["pixels"][:1]), 2, seed=0, prior=prior)
    made = data.batch(0)
    assert made["weight"].tolist() == pytest.approx([2.0, 2.0, 0.6, 0.6])
    assert ["<concept>" in text for text in made["prompt"]] == [True, True, False, False]
    assert torch.equal(made["latent"][2:], batch["latent"][:1].expand(2, -1, -1, -1))


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=3e-5, atol=1e-6)
