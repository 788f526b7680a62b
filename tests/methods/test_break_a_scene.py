"""Break-A-Scene: TI's loss where nothing of it acts; its own losses by hand; its phases through the whole loop."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import interpolate

from escdiff.backbone.adapters.attached import applied
from escdiff.concept import Concept
from escdiff.methods.break_a_scene import BreakAScene, attention_loss
from escdiff.methods.ti import TI
from escdiff.pipelines.generate import generate
from escdiff.support.errors import UserError
from escdiff.training.method.module import MethodModule
from escdiff.training.method.references import ReferenceData, References


@pytest.fixture
def scene(tmp_path):
    """A picture of two things with a mask each; `whole` has one mask of everything."""
    rng = np.random.default_rng(0)
    for name in ("scene.png", "whole.png"):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / name)
    for number, columns in enumerate((slice(0, 24), slice(32, 64))):
        mask = np.zeros((64, 64), np.uint8)
        mask[:, columns] = 255
        Image.fromarray(mask).save(tmp_path / f"scene.mask{number}.png")
    Image.new("L", (64, 64), 255).save(tmp_path / "whole.mask.png")
    return tmp_path


def step(method, source, number=0, size=2):
    """A training step's output, gradients taken, and its batch."""
    data = ReferenceData(method, References.read(source, 128, needs=("masks",)), size, 0)
    module = MethodModule(method, 1e-3, 10)
    module.on_fit_start()
    torch.manual_seed(0)
    batch = data.batch(number)
    out = module.training_step(batch, 0)
    out["loss"].backward()
    module.on_fit_end()
    return out, batch


def test_one_thing_everywhere_without_attention_is_ti(backbone, scene):
    ti = TI(backbone)
    expected, _ = step(ti, scene / "whole.png")
    for by_area in (False, True):
        method = BreakAScene(backbone, ["object"], attention=0.0, by_area=by_area)
        found, _ = step(method, scene / "whole.png")
        torch.testing.assert_close(found["loss"], expected["loss"], rtol=0 if not by_area else 1e-6, atol=0)
        torch.testing.assert_close(method.tables["asset0"].grad, ti.table.grad[0, 0], rtol=1e-5, atol=1e-8)
        first = method.phases(1e-3)[0]
        assert first.parameters == [method.tables["asset0"]]  # the weights rest


def test_every_step_names_some_of_the_things(backbone):
    method = BreakAScene(backbone, ["mug", "chair", "dog"], templates=["a photo of a {}"])
    rng = np.random.default_rng(0)
    seen = {method.prompt(rng).removeprefix("a photo of a ") for _ in range(300)}
    assert {"<asset0>", "<asset1>", "<asset2>", "<asset1> and a <asset0>"} <= seen
    assert {text.count("<") for text in seen} == {1, 2, 3} and len(seen) == 3 + 6 + 6
    assert method.concept().attributes == ("asset0", "asset1", "asset2")


def test_the_losses_by_hand(backbone, scene):
    """Two pictures of the scene, of which the prompt names one thing and both, and one of the class."""
    method = BreakAScene(backbone, ["mug", "chair"], attention=0.5)
    masks = References.read(scene / "scene.png", 128, needs=("masks",)).masks
    texts = ["a <asset1>", "a <asset0> and a <asset1>", "a photo at the beach"]
    output, target = torch.randn(2, 3, 8, 16, 16, generator=torch.Generator().manual_seed(0))
    maps = torch.rand(3, 16, 16, 77, generator=torch.Generator().manual_seed(1))

    class Maps:
        def average(self):
            return maps

    batch = {"texts": texts, "maps": Maps(), "weight": torch.tensor([2.0, 2.0, 0.5]),
             "masks": torch.cat([masks, masks, torch.zeros_like(masks)])}  # fmt: skip
    found = method.losses(output, target, method.vectors({}), batch)
    small = interpolate(masks, (16, 16))[0]
    error = (output - target).square()
    union = (small[1], small.amax(0), torch.ones(16, 16))
    by_hand = [weight * (error[i] * union[i]).mean() for i, weight in enumerate((2.0, 2.0, 0.5))]
    torch.testing.assert_close(found["denoising"], sum(by_hand) / 3)
    where = [(0, 1, 2), (1, 0, 2), (1, 1, 5)]  # sample, thing, position: <start> a <asset0> and a <asset1>
    each = [(maps[b, :, :, t] / maps[b, :, :, t].max() - small[a]).square().mean() for b, a, t in where]
    torch.testing.assert_close(found["attention"], 0.5 * sum(each) / 2)
    assert attention_loss(small[None], small[None], torch.ones(1, 2)) < 1e-6  # a map that is its mask


def test_flipped_pictures_have_flipped_masks_and_the_class_has_none(backbone, scene):
    from escdiff.training.method.references import Prior

    method = BreakAScene(backbone, ["mug", "chair"])
    given = References.read(scene / "scene.png", 128, needs=("masks",))
    prior = Prior(["a photo at the beach"], torch.zeros(1, 16, 16, 16), 1.0)
    batch = ReferenceData(method, given, 8, 0, prior=prior).batch(0)
    flipped = [torch.equal(picture, given.pixels[0].flip(-1)) for picture in batch["pixels"]]
    assert any(flipped) and not all(flipped)
    for row, mirrored in enumerate(flipped):
        assert torch.equal(batch["masks"][row], given.masks[0].flip(-1) if mirrored else given.masks[0])
    assert batch["masks"].shape[0] == 16 and not batch["masks"][8:].any()


@pytest.mark.slow
def test_words_first_then_weights_and_both_come_back(fit, backbone, scene):
    run = fit("break_a_scene", "method.init=[mug,chair]", "method.prior_count=1", "optim.lr=0.05",
              "method.second_lr=0.05", "trainer.save_steps=2", "trainer.keep=4", steps=4,
              source=scene / "scene.png")  # fmt: skip
    files = sorted((run / "checkpoints").glob("*.ckpt"))
    states = [torch.load(file, weights_only=True)["state_dict"] for file in files]
    adapters = [key for key in states[0] if "kept" in key and states[1][key].abs().sum() > 0]
    halfway, done = states
    assert any(not halfway[key].any() and done[key].any() for key in adapters)  # B of a LoRA starts at zero
    assert not torch.equal(halfway["method.tables.asset0"], done["method.tables.asset0"])
    concept = Concept.load(run / "export" / "concept.safetensors")
    assert concept.attributes == ("asset0", "asset1") and concept.notes["adapter"] == "adapter"
    with applied(backbone, [concept], [run / "export"]):
        one, both = generate(backbone, ["a <asset0>", "a <asset0> and a <asset1>"], [concept] * 2, steps=1)
    assert np.asarray(one).shape == np.asarray(both).shape == (128, 128, 3)


@pytest.mark.slow
def test_a_run_stopped_in_its_second_phase_goes_on_exactly(fit, scene, stopped_at):
    settings = ["method.init=[mug,chair]", "method.prior_count=1", "optim.lr=0.05", "method.second_lr=0.02"]
    straight = fit("break_a_scene", *settings, steps=6, source=scene / "scene.png") / "export"
    with stopped_at(4):
        fit("break_a_scene", *settings, steps=6, source=scene / "scene.png", folder="parts")
    parts = fit("break_a_scene", *settings, steps=6, source=scene / "scene.png", folder="parts") / "export"
    for file in ("concept.safetensors", "adapter/pytorch_lora_weights.safetensors"):
        one, two = load_file(straight / file), load_file(parts / file)
        assert all(torch.equal(two[key], value) for key, value in one.items())


def test_masks_and_words_must_be_as_many(fit, scene):
    with pytest.raises(UserError, match="has 2 masks, and method.init 3 words"):
        fit("break_a_scene", "method.init=[mug,chair,dog]", "method.prior_weight=0", source=scene / "scene.png")
    for setting, words in (("method.init=[]", "method.init is empty"), ("method.first=1.5", "method.first=1.5")):
        with pytest.raises(UserError, match=words):
            fit("break_a_scene", setting, source=scene / "scene.png")
