"""Methods of several stages: each sample gets its own, in every part of the loop."""

import pytest
import torch
from method_step import step_of

from escdiff.backbone.unet_feed import condition
from escdiff.concept import Concept
from escdiff.conditioning.grid import expand
from escdiff.methods.matte import MATTE
from escdiff.methods.neti import NeTI
from escdiff.methods.prospect import ProSpect
from escdiff.methods.xti import XTI
from escdiff.support.errors import UserError
from escdiff.training.method.module import MethodModule


def test_matte_with_one_group_and_one_stage_is_xti(backbone, references):
    tokens = {"concept": {"word": "object", "layers": "all"}}
    matte, xti = MATTE(backbone, tokens, stage_bounds=(0, 1000), tied=False), XTI(backbone)
    assert matte.space == xti.space
    a, b = step_of(matte, references), step_of(xti, references)
    assert torch.equal(a["loss"], b["loss"])
    assert torch.equal(matte.tables["concept"].grad, xti.table.grad)


def test_matte_tokens_are_heard_in_their_cells_only(backbone, references):
    matte = MATTE(backbone)
    assert matte.phrase == "<color> <style> <object> <layout>"
    for name in matte.attributes:
        torch.nn.init.normal_(matte.tables[name])
    vectors = matte.vectors({})
    coarse = next(i for i, cell in enumerate(matte.space.cells) if any("mid_block" in layer for layer in cell))
    for name, early_only in (("layout", True), ("object", False)):
        changed = (vectors[name][0] != matte.anchor(name)).flatten(2).any(-1)  # (L, S)
        expected = torch.zeros_like(changed)
        expected[coarse, 1] = True
        expected[coarse, 0] = not early_only
        assert torch.equal(changed, expected), name
    moderate = (vectors["style"][0] != matte.anchor("style")).flatten(2).any(-1)[:, 0]
    assert not moderate[coarse] and moderate.sum() == 1
    logs = step_of(matte, references)["logs"]
    cosine = torch.cosine_similarity(matte.token("color"), matte.token("style"), dim=-1).square().mean()
    assert logs["color_style"].item() == pytest.approx(0.01 * cosine.item(), rel=1e-4)
    assert {"layout_object", "object"} <= set(logs)


def test_any_subset_of_mattes_tokens_makes_a_prompt(backbone):
    concept, space = MATTE(backbone).concept(), MATTE(backbone).space
    for prompt in ("a <color> mug", "a <style> <layout>", "a <concept>"):
        grid = backbone.prompts.encode([prompt], concept.placeholders())
        assert grid.shape[1:3] == (space.num_layers, space.num_stages)


@pytest.mark.parametrize(("network", "vectors"), [(True, 1), (True, 2), (False, 1)])
def test_prospect_selects_every_samples_stage(backbone, network, vectors):
    method = ProSpect(backbone, network=network, vectors=vectors)
    for parameter in method.parameters():
        torch.nn.init.normal_(parameter)
    found = method.vectors({})["concept"]
    assert found.shape == (1, 1, 10, vectors, 32)
    assert len(found.flatten(3)[0, 0].unique(dim=0)) == 10
    stage = torch.tensor([9, 0, 4, 4])
    texts = ["a <concept>", "a <concept>", "one <concept>", "a plain thing"]
    got = condition(backbone.prompts, texts, {"<concept>": found}, stage)
    whole = expand(backbone.prompts.encode(texts, {"<concept>": found.expand(4, -1, -1, -1, -1)}), 1, 10)
    for row, s in enumerate(stage):
        assert torch.allclose(got[row], whole[row, :, s], atol=1e-5)
        assert row == 3 or not torch.allclose(got[row], whole[row, :, (s + 1) % 10], atol=1e-3)


def test_a_batch_of_four_equals_one_by_one(backbone):
    """The loss of four samples in four stages is the mean of theirs alone."""
    method = ProSpect(backbone, network=False)
    torch.nn.init.normal_(method.table)
    latents, noise = torch.randn(2, 4, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([950, 20, 450, 460])
    module = MethodModule(method, 1e-3, 10)
    module.on_fit_start()

    def error(rows):
        t, x, e = timesteps[rows], latents[rows], noise[rows]
        texts = ["a <concept>"] * len(rows)
        vectors = {"<concept>": method.vectors({})["concept"]}
        grid = condition(backbone.prompts, texts, vectors, method.space.stage_of(t))
        output = backbone.predict(backbone.add_noise(x, e, t), t, module._feed.layers.load(grid))
        return (output - e).square().mean()

    alone = torch.stack([error([i]) for i in range(4)]).mean()
    assert torch.allclose(error([0, 1, 2, 3]), alone, rtol=1e-5)
    module.on_fit_end()


def test_stages_are_each_samples_own_or_shared(backbone):
    torch.manual_seed(0)
    own, shared = (MethodModule(m, 1e-3, 10).draw(64, 0.0) for m in (ProSpect(backbone), NeTI(backbone)))
    assert own[1].unique().numel() > 5 and shared[1].unique().numel() == 1
    for timesteps, stage in (own, shared):
        assert torch.equal(ProSpect(backbone).space.stage_of(timesteps), stage)


def test_netis_slider_cuts_the_hidden_features(backbone, references):
    method = NeTI(backbone, nested=1.0)
    assert not step_of(method, references)["loss"].isnan() and method.enter.weight.grad.abs().sum() > 0
    whole = method.concept()
    assert whole.vectors["concept"].shape == (16, 10, 1, 32)
    norm = method.anchor("concept").norm()
    assert torch.allclose(whole.vectors["concept"].norm(dim=-1), norm.expand(16, 10, 1), rtol=1e-4)
    method.fidelity = 1 / 128
    least = method.concept().vectors["concept"]
    assert not torch.allclose(least, whole.vectors["concept"])
    with torch.no_grad():
        method.leave.weight[:, 1:] = torch.randn(32, 127)
    assert torch.equal(method.concept().vectors["concept"], least)  # features beyond the first say nothing
    torch.manual_seed(0)
    method.train()
    cuts = torch.tensor([method.cut() for _ in range(200)])
    assert cuts.min() < 20 and cuts.max() > 100 and cuts.unique().numel() > 60


def test_netis_notches_are_files(fit):
    folder = fit("neti", "method.stages=3") / "export"
    files = {path.name: Concept.load(path) for path in folder.glob("*.safetensors")}
    assert set(files) == {f"concept{end}.safetensors" for end in ("", "-25", "-50", "-75")}
    assert files["concept-25.safetensors"].notes["fidelity"] == "0.25"


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        ({"color": {"layers": "middle"}}, "layers='middle'"),
        ({"color": {"layers": [99]}}, "layer 99"),
        ({"color": {"stages": [5]}}, "stage 5"),
    ],
)
def test_matte_refuses_cells_that_are_not_there(backbone, tokens, words):
    with pytest.raises(UserError, match=words):
        MATTE(backbone, tokens)
