"""Methods that change weights: they start as no change, leave the U-Net as it was, and come back from their folder."""

import json

import pytest
import torch
from method_step import step_of
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from escdiff.backbone.adapters.attached import CROSS_KV, IMAGE, Attached, ImageAttention, LowRank, applied
from escdiff.backbone.adapters.fused import Fused
from escdiff.backbone.adapters.gated import Gated
from escdiff.backbone.branches import delete_adapters
from escdiff.backbone.lora import without_adapters
from escdiff.concept import Concept
from escdiff.conditioning.acting import current_masks
from escdiff.methods.custom_diffusion import CustomDiffusion, changes_of, merge
from escdiff.methods.dreambooth import DreamBooth
from escdiff.methods.escdiff_tuned import ESCDiffTuned
from escdiff.support.errors import UserError
from escdiff.training.method import setup as method_setup
from escdiff.training.method.setup import make_prior


def output(backbone, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noisy = torch.randn(2, 8, 16, 16, generator=generator)
    with torch.no_grad():
        return backbone.predict(noisy, torch.tensor([100, 900]), torch.randn(2, 77, 32, generator=generator))


@pytest.mark.parametrize(("kind", "inside"), [(DreamBooth, "attn1"), (CustomDiffusion, "attn2.to_k")])
def test_gradients_reach_the_adapter_and_no_frozen_weight(backbone, references, kind, inside):
    stock = output(backbone)
    method = kind(backbone)
    assert torch.equal(output(backbone), stock)  # an adapter starts as no change
    step_of(method, references)
    graded = [n for n, p in backbone.unet.named_parameters() if p.grad is not None]
    assert graded and all(".lora_" in name for name in graded) and any(inside in name for name in graded)
    assert kind is DreamBooth or all("attn2.to_k" in n or "attn2.to_v" in n for n in graded)
    assert kind is DreamBooth or method.modifier.grad.abs().sum() > 0
    assert all(p.grad is None for p in backbone.text_encoder.parameters())
    assert method.changed() == sum(p.numel() for p in method.parameters())


def test_the_rare_word_stands_before_the_class(backbone):
    method = DreamBooth(backbone, init="mug", rare="sks")
    words = backbone.prompts.encode_plain(["a photo of a sks mug"])
    assert torch.equal(backbone.prompts.encode(["a photo of a <concept>"], method.concept().placeholders()), words)
    custom = CustomDiffusion(backbone, init="mug", rare="ktn")
    assert custom.concept().vectors["concept"].shape == (1, 1, 2, 32)
    assert torch.equal(custom.concept().vectors["concept"][0, 0, 1], backbone.prompts.word_embedding("mug")[0])


def test_the_prior_is_the_untouched_backbones_and_weighs_as_said(backbone, references, monkeypatch, tmp_path):
    monkeypatch.setattr(method_setup, "PRIOR_STEPS", 2)
    assert make_prior(DreamBooth(backbone, prior_weight=0.0), 0, 128, tmp_path) is None
    method = CustomDiffusion(backbone, prior_count=2, prior_weight=0.5)
    prior = make_prior(method, 0, 128, tmp_path)
    assert prior.moments.shape == (2, 16, 16, 16) and prior.prompts == ["a photo of a object"] * 2
    from escdiff.training.method.references import ReferenceData, References

    batch = ReferenceData(method, References.read(references, 128), 3, 0, prior=prior).batch(0)
    assert batch["latent"].shape[0] == 6 and batch["weight"].tolist() == [2.0] * 3 + [1.0] * 3
    assert "<concept>" in batch["prompt"][0] and batch["prompt"][3:] == ["a photo of a object"] * 3
    pred, target = torch.randn(2, 6, 8, 4, 4)
    found = method.losses(pred, target, {}, batch)["denoising"]
    error = (pred - target).square().mean((1, 2, 3))
    assert torch.allclose(found, error[:3].mean() + 0.5 * error[3:].mean())


def test_a_resumed_run_reads_the_prior_that_it_has_painted(backbone, monkeypatch, tmp_path):
    monkeypatch.setattr(method_setup, "PRIOR_STEPS", 2)
    painted = []

    def generate(*args, **kwargs):
        painted.append(kwargs["seeds"])
        return original(*args, **kwargs)

    original = method_setup.generate
    monkeypatch.setattr(method_setup, "generate", generate)
    method = DreamBooth(backbone, prior_count=2)
    first, again = (make_prior(method, 0, 128, tmp_path) for _ in range(2))
    assert len(painted) == 1 and torch.equal(first.moments, again.moments) and first.prompts == again.prompts
    other = make_prior(method, 5, 128, tmp_path)  # the same folder, another run
    assert painted == [[0, 1], [5, 6]] and not torch.equal(other.moments, first.moments)
    (tmp_path / method_setup.PRIOR_FILE).write_bytes(b"damaged")
    assert torch.equal(make_prior(method, 0, 128, tmp_path).moments, first.moments) and len(painted) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dreambooth", "custom_diffusion"])
def test_adapter_folder_round_trip(fit, backbone, name):
    folder = fit(name, "method.prior_count=1", "optim.lr=0.1", steps=2) / "export"
    concept = Concept.load(folder / "concept.safetensors")
    assert (folder / "adapter").is_dir() and concept.notes["adapter"] == "adapter"
    stock = output(backbone)
    with applied(backbone, [concept], [folder]):
        changed = output(backbone)
    assert not torch.allclose(changed, stock, atol=1e-5) and torch.equal(output(backbone), stock)
    with applied(backbone, [concept, concept], [folder, folder]):
        assert torch.equal(output(backbone), changed)  # one folder is one adapter
    saved = torch.load(next((folder.parent / "checkpoints").glob("*.ckpt")), weights_only=True)
    expected = {"method.modifier"} if name == "custom_diffusion" else set()
    assert {key for key in saved["state_dict"] if "kept" not in key} == expected
    assert json.loads((folder.parent / "manifest.json").read_text(encoding="utf-8"))["status"] == "finished"


def test_an_adapter_that_is_gone_or_for_another_unet_is_refused(fit, backbone, tmp_path):
    folder = fit("custom_diffusion", "method.prior_weight=0", steps=1) / "export"
    concept = Concept.load(folder / "concept.safetensors")
    with pytest.raises(UserError, match="weights in"), applied(backbone, [concept], [tmp_path]):
        pass
    import tiny

    other = tiny.make_backbone()
    other.unet.mid_block = torch.nn.Identity()
    with pytest.raises(UserError, match="another U-Net"), applied(other, [concept], [folder]):
        pass
    file = folder / "adapter" / "pytorch_lora_weights.safetensors"
    file.write_bytes(b"no tensors at all")
    with pytest.raises(UserError, match="cannot be read"), applied(backbone, [concept], [folder]):
        pass


def test_merged_weights_keep_each_concepts_words_and_ordinary_captions():
    torch.manual_seed(0)
    weight, changes = torch.randn(12, 32), [0.3 * torch.randn(12, 32) for _ in range(2)]
    targets = [torch.randn(2, 32), torch.randn(3, 32)]
    regular = torch.randn(200, 32)
    merged = merge(weight, changes, targets, regular)
    for change, target in zip(changes, targets, strict=True):
        assert torch.allclose(target @ merged.T, target @ (weight + change).T, atol=1e-3)
    added = weight + sum(changes)
    assert (regular @ (merged - weight).T).norm() < 0.7 * (regular @ (added - weight).T).norm()
    state = {"k.lora_A.weight": torch.tensor([[1.0, 2.0]]), "k.lora_B.weight": torch.tensor([[3.0], [0.0], [-1.0]])}
    assert changes_of(state)["k"].tolist() == [[3, 6], [0, 0], [-1, -2]]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory, tiny_backbone):
    """Folder of a small encoder for the tiny backbone."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    from escdiff.encoder import ConceptEncoder, EncoderConfig, load_vision

    root = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    tower = CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
                             image_size=32, patch_size=16)  # fmt: skip
    CLIPVisionModel(tower).save_pretrained(root / "tower")
    config = EncoderConfig(vision=str(root / "tower"), shape_depths=(1, 2), appearance_depths=(0, 1), features=16)
    made = ConceptEncoder.for_backbone(config, load_vision(config.vision), tiny_backbone, tiny_backbone.p_plus())
    made.save_pretrained(root / "encoder")
    return root / "encoder"


def test_tuning_starts_from_the_encoders_prediction(fit, encoder, backbone, references):
    from escdiff.data.pictures import open_image, to_pixels
    from escdiff.encoder import ConceptEncoder

    source = references / "a.png"
    concepts = {}
    for steps in (0, 2):
        folder = fit("escdiff_tuned", f"method.encoder={encoder}", steps=steps, source=source, folder=f"run{steps}")
        concepts[steps] = Concept.load(folder / "export" / "concept.safetensors")
        assert concepts[steps].notes["steps"] == str(steps)
    reader = ConceptEncoder.from_pretrained(encoder, backbone)
    expected = reader.encode(to_pixels(open_image(source), 128))
    for attribute in ("shape", "appearance"):
        assert torch.equal(concepts[0].vectors[attribute], expected.vectors[attribute])
        assert torch.equal(concepts[0].gates[attribute], expected.gates[attribute])
        assert not torch.equal(concepts[2].vectors[attribute], expected.vectors[attribute])


def test_tuning_goes_on_at_the_branches_own_tokens(fresh, encoder, tmp_path, references):
    from dataclasses import replace

    from escdiff.backbone.branches import add_branches
    from escdiff.encoder import ConceptEncoder

    backbone, reader = fresh(), ConceptEncoder.from_pretrained(encoder)
    reader.config = replace(reader.config, branches="routed", branch_rank=2)
    add_branches(backbone.unet, 2)
    reader.save_pretrained(tmp_path, backbone.unet)
    tuned = ESCDiffTuned(fresh(), str(tmp_path))
    seen = []
    layer = tuned.backbone.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    hook = layer.register_forward_hook(lambda *_: seen.append(current_masks()))
    step_of(tuned, references)
    hook.remove()
    assert seen[0].sum(2).tolist() == [[2, 6], [2, 6]]  # shape, appearance
    assert all(residual.grad.abs().sum() > 0 for residual in tuned.residuals.values())


def test_the_tuned_residual_can_be_held_back(backbone, encoder, references):
    method = ESCDiffTuned(backbone, str(encoder), residual=2.0)
    with torch.no_grad():
        method.residuals["shape"].fill_(1.0)
    term = step_of(method, references)["logs"]["residual"]
    assert term.item() == pytest.approx(2 * 32 / method.anchor("shape").square().sum(-1).mean().item(), rel=1e-4)


def image_attention(backbone):
    """As a method puts it in: four tokens of one embedding."""
    width = backbone.width
    projection = {"proj.weight": torch.randn(4 * width, 12), "proj.bias": torch.zeros(4 * width),
                  "norm.weight": torch.ones(width), "norm.bias": torch.zeros(width)}  # fmt: skip
    return ImageAttention(backbone, projection)


PUT = {"fused": lambda backbone: Fused(backbone, 8), "gated": lambda backbone: Gated(backbone, 8),
       "image": image_attention}  # fmt: skip


@pytest.mark.parametrize("low_rank", [False, True])
@pytest.mark.parametrize("kind", PUT)
def test_the_stock_unet_under_whatever_was_put_into_it(backbone, kind, low_rank):
    unet = backbone.unet
    expected, config = {key: value.clone() for key, value in unet.state_dict().items()}, dict(unet.config)
    if low_rank:
        LowRank(backbone, 2)
    PUT[kind](backbone)
    plain = without_adapters(unet)
    found = plain.state_dict()
    assert found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)
    assert plain.config["encoder_hid_dim_type"] is config["encoder_hid_dim_type"] is None


@pytest.mark.parametrize("fault", ["another kind", "a layer less", "another width", "no tensors"])
def test_a_wrong_image_adapter_is_refused_and_leaves_no_trace(backbone, tmp_path, fault):
    weights, unet = image_attention(backbone), backbone.unet
    weights.save(tmp_path)
    weights.remove()
    state = load_file(tmp_path / IMAGE)
    if fault == "another kind":
        state = {"down.lora_A.weight": torch.zeros(2, 2)}
    elif fault == "a layer less":
        state = {key: value for key, value in state.items() if not key.startswith("ip_adapter.31.")}
    elif fault == "another width":
        state = {key: value[..., :-1].contiguous() for key, value in state.items()}
    save_file(state, tmp_path / IMAGE)
    if fault == "no tensors":
        (tmp_path / IMAGE).write_bytes(b"no tensors at all")
    before, processors, config = list(unet.state_dict()), dict(unet.attn_processors), dict(unet.config)
    with pytest.raises(UserError, match=IMAGE):
        Attached(unet, tmp_path)
    assert list(unet.state_dict()) == before and unet.attn_processors == processors and dict(unet.config) == config


def test_a_concepts_adapter_trains_nothing_and_leaves_trained_what_is(backbone, tmp_path):
    LowRank(backbone, 2).save(tmp_path)
    delete_adapters(backbone.unet, ["method"])
    for name in ("frozen", "trained"):
        backbone.unet.add_adapter(LoraConfig(r=2, target_modules=CROSS_KV), adapter_name=name)

    def trained():
        return {name for name, parameter in backbone.unet.named_parameters() if parameter.requires_grad}

    backbone.unet.set_adapters(["frozen", "trained"])
    for name, parameter in backbone.unet.named_parameters():
        parameter.requires_grad_(".trained." in name)
    before = trained()
    attached = Attached(backbone.unet, tmp_path)
    assert before and trained() == before
    attached.remove()
    assert trained() == before
