"""TI is XTI with tied layers; the loop resumes exactly; the density is that of the equation."""

import json

import pytest
import torch
from method_step import step_of
from safetensors.torch import load_file

from escdiff.concept import Concept
from escdiff.methods import losses
from escdiff.methods.ti import TI
from escdiff.methods.xti import XTI
from escdiff.training.loop import run


def test_tied_xti_is_ti_gradient_by_gradient(backbone, references):
    ti, tied, each = TI(backbone), XTI(backbone, layers="tied"), XTI(backbone)
    losses_ = [step_of(m, references)["loss"].detach() for m in (ti, tied, each)]
    assert torch.equal(losses_[0], losses_[1]) and torch.equal(ti.table.grad, tied.table.grad)
    # With equal vectors everywhere, XTI's layers share out TI's gradient.
    assert torch.allclose(losses_[0], losses_[2], rtol=1e-5)
    assert torch.allclose(each.table.grad.sum(0, keepdim=True), ti.table.grad, rtol=1e-3, atol=1e-7)
    norms = each.table.grad.flatten(1).norm(dim=1)
    assert (norms > 0).all() and norms.unique().numel() == 16  # every layer has its own


@pytest.mark.slow
def test_tied_xti_is_ti_through_the_whole_loop(fit):
    ti = Concept.load(fit("ti", "seed=3", steps=3) / "export" / "concept.safetensors")
    tied = fit("xti", "seed=3", "method.layers=tied", "optim.lr=5e-3", "method.lr_one=null", steps=3, folder="tied")
    xti = Concept.load(tied / "export" / "concept.safetensors")
    assert torch.equal(ti.vectors["concept"], xti.vectors["concept"])
    assert not torch.equal(ti.vectors["concept"][0, 0], ti.anchors["concept"])
    assert ti.notes["method"] == "TI" and ti.notes["steps"] == "3" and float(ti.notes["seconds"]) > 0


def test_norm_is_kept_or_not(backbone, references):
    for keep in (True, False):
        method = TI(backbone, keep_norm=keep)
        with torch.no_grad():
            method.table.mul_(3)
        norm = method.vectors({})["concept"].norm() / method.anchor("concept").norm()
        assert norm.item() == pytest.approx(1 if keep else 3, rel=1e-5)


def test_one_reference_has_its_own_rate(backbone):
    assert XTI(backbone).rate(5e-3, 1) == 1e-3 and XTI(backbone).rate(5e-3, 3) == 5e-3
    assert XTI(backbone, lr_one=None).rate(5e-3, 1) == 5e-3 == TI(backbone).rate(5e-3, 1)


def test_density_is_a_term_and_a_note(backbone, references):
    plain, dense = XTI(backbone), XTI(backbone, density=0.5, bandwidth=0.7)
    assert "density" not in step_of(plain, references)["logs"]
    term = step_of(dense, references)["logs"]["density"]
    prompts = backbone.prompts
    expected = losses.density(dense.anchor("concept"), prompts.embedding_weight, 0.7 * prompts.embedding_scale)
    assert term.item() == pytest.approx(0.5 * expected.item(), rel=1e-4)
    notes = dense.concept().notes
    assert notes["density"] == notes["density_of_word"]  # nothing was learned yet


def test_frozen_weights_stay_out_and_frozen(fit, backbone, references):
    method = XTI(backbone)
    step_of(method, references)
    assert all(
        p.grad is None for part in (backbone.unet, backbone.vae, backbone.text_encoder) for p in part.parameters()
    )
    saved = torch.load(run.RunFolder(fit("xti")).newest_checkpoint(), weights_only=True)
    assert set(saved["state_dict"]) == {"method.table"}


@pytest.mark.slow
def test_a_stopped_run_goes_on_exactly(fit, stopped_at):
    straight = load_file(fit("xti", steps=4) / "export" / "concept.safetensors")
    with stopped_at(2):
        stopped = fit("xti", steps=4, folder="parts")
    assert json.loads((stopped / "manifest.json").read_text(encoding="utf-8"))["status"] == "stopped"
    parts = load_file(fit("xti", steps=4, folder="parts") / "export" / "concept.safetensors")
    assert all(torch.equal(parts[key], value) for key, value in straight.items())


def test_a_step_encodes_its_prompt_once_per_layer(backbone, references, monkeypatch):
    """What keeps a P+ step near the cost of a step of TI: rows of the text encoder, not time."""
    seen = []
    monkeypatch.setattr(TI, "prompt", lambda method, rng: "a photo of a <concept>")
    hook = backbone.text_encoder.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    for kind in (TI, XTI):
        step_of(kind(backbone), references, batch_size=8)
    hook.remove()
    assert seen == [(1, 77), (1, 5), (16, 72)]  # TI's one cell; XTI's beginning and, for every layer, the rest
