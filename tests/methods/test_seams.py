"""What the loop offers to methods beyond vectors: phases, densities, rows, attention maps, files beside references."""

import numpy as np
import pytest
import torch
from method_step import step_of
from PIL import Image

from escdiff.conditioning.attention import layers_at
from escdiff.methods import Phase, losses
from escdiff.methods.matte import MATTE
from escdiff.methods.ti import TI
from escdiff.methods.xti import XTI
from escdiff.support.errors import UserError
from escdiff.training.loop.timesteps import draw_timesteps
from escdiff.training.method.module import MethodModule
from escdiff.training.method.phases import Phases
from escdiff.training.method.references import ReferenceData, References


class Watching(TI):
    """TI that looks at the attention to its word."""

    def watch(self):
        return layers_at(self.backbone.unet)

    def losses(self, output, target, vectors, batch):
        slots = self.slots(batch["texts"], vectors)
        maps = torch.einsum("bhwt,bat->bahw", batch["maps"].average(), slots)
        return super().losses(output, target, vectors, batch) | {"share": maps.mean()}


class Slow(TI):
    """The words are trained in the first and the last third."""

    def __init__(self, backbone):
        super().__init__(backbone, keep_norm=False)
        self.extra = torch.nn.Parameter(torch.zeros(1))

    def vectors(self, batch):
        return {"concept": self.table[None] + self.extra}

    def phases(self, lr):
        return [Phase(1 / 3, lr, [self.table]), Phase(1 / 3, 2 * lr, [self.extra]),
                Phase(1 / 3, lr / 10, [self.table, self.extra])]  # fmt: skip


def test_watched_maps_are_of_this_pass_and_carry_gradients(backbone, references):
    method, plain = Watching(backbone), TI(backbone)
    out, stock = step_of(method, references), step_of(plain, references)
    assert torch.equal(out["logs"]["denoising"], stock["logs"]["denoising"])  # watching changes nothing
    assert 0 < out["logs"]["share"] < 1
    assert not torch.equal(method.table.grad, plain.table.grad)
    hooks = [hook for module in backbone.unet.modules() for hook in module._forward_hooks.values()]
    assert not hooks  # they end with the fit


def test_slots_are_the_placeholders_positions(backbone):
    method = TI(backbone, vectors=2)
    found = method.slots(["a photo of a <concept> there", "nothing"], method.vectors({}))
    assert found.shape == (2, 1, 77) and found[0, 0].nonzero().flatten().tolist() == [5, 6] and not found[1].any()


def test_a_phase_trains_its_parameters_at_its_rate(backbone):
    module = MethodModule(Slow(backbone), 0.1, 6)
    found = module.configure_optimizers()
    optimizer, schedule = found["optimizer"], found["lr_scheduler"]["scheduler"]
    table, extra = (group["params"] for group in optimizer.param_groups)
    assert table == [module.method.table] and extra == [module.method.extra]
    rates = []
    for step in range(6):
        for parameter in (module.method.table, module.method.extra):
            parameter.grad = torch.ones_like(parameter)
        module._phases.rest(step)
        rates.append([group["lr"] if group["params"][0].grad is not None else None for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    expected = [[0.1, None]] * 2 + [[None, 0.2]] * 2 + [[0.01, 0.01]] * 2
    assert [[rate and round(rate, 6) for rate in step] for step in rates] == expected


def test_an_empty_first_phase_leaves_the_second_its_rate(backbone):
    method = TI(backbone)
    method.phases = lambda lr: [Phase(0.0, lr, [method.table]), Phase(1.0, lr / 10, [method.table])]
    optimizer = MethodModule(method, 0.1, 6).configure_optimizers()["optimizer"]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_phases_are_parts_of_a_whole(backbone):
    with pytest.raises(UserError, match=r"shares \[0.5, 0.6\]"):
        Phases([Phase(0.5, 1.0, []), Phase(0.6, 1.0, [])], 10)
    assert [Phases([Phase(0.25, 1.0, []), Phase(0.75, 1.0, [])], 8).at(step) for step in (0, 1, 2, 9)] == [0, 0, 1, 1]


def test_a_method_has_its_own_density_of_timesteps():
    torch.manual_seed(0)
    weights = torch.zeros(1000)
    weights[[3, 700]] = torch.tensor([1.0, 3.0])
    timesteps, _ = draw_timesteps(2000, 1, weights)
    assert set(timesteps.unique().tolist()) == {3, 700}
    assert (timesteps == 700).float().mean().item() == pytest.approx(0.75, abs=0.03)


def test_copies_share_noise_and_timesteps(backbone, references, monkeypatch):
    method = TI(backbone)
    method.copies = 2
    data = ReferenceData(method, References.read(references / "a.png", 128), 4, 0, flip=False)
    module = MethodModule(method, 1e-3, 10)
    sample = backbone.sample_latents
    monkeypatch.setattr(backbone, "sample_latents", lambda moments: 0 * sample(moments))  # nothing but noise is seen
    module.on_fit_start()
    _, _, _, batch = module.denoise(data.batch(0), 0.0)
    module.on_fit_end()
    timesteps, noisy = batch["timesteps"], batch["noisy"]
    assert torch.equal(timesteps[:2], timesteps[2:]) and timesteps[0] != timesteps[1]
    assert torch.equal(noisy[:2], noisy[2:]) and not torch.equal(noisy[0], noisy[1])


@pytest.mark.parametrize("kind", [TI, XTI, MATTE])
def test_the_anchor_is_a_term_of_every_method_with_words(backbone, references, kind):
    """Compositional Inversion; with share 0 the method is itself."""
    method = kind(backbone)
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.01)
    data = ReferenceData(method, References.read(references, 128), 2, 0)
    terms = {}
    for share in (0.0, 0.4):
        module = MethodModule(method, 1e-3, 10, anchor=share)
        module.on_fit_start()
        torch.manual_seed(0)
        terms[share] = module.training_step(data.batch(0), 0)["logs"]
        module.on_fit_end()
    assert "anchor" not in terms[0.0] and set(terms[0.4]) == {*terms[0.0], "anchor"}
    for name, value in terms[0.0].items():
        torch.testing.assert_close(terms[0.4][name], 0.6 * value)
    vectors = method.vectors({})
    apart = [(vectors[name] - method.anchor(name)).square().mean() for name in vectors]
    torch.testing.assert_close(terms[0.4]["anchor"], 0.4 * sum(apart) / len(apart))
    assert losses.anchored({"a": torch.ones(2, 3)}, {"a": torch.zeros(1, 3)}) == 1


@pytest.fixture
def beside(tmp_path):
    """Writes a picture of 32 pixels, white in the given columns."""

    def write(name, columns=slice(0, 0)):
        picture = np.zeros((32, 32, 3), np.uint8)
        picture[:, columns] = 255
        Image.fromarray(picture).save(tmp_path / name)

    return write


def test_files_beside_references_are_read_in_order(beside, tmp_path):
    for name in ("a", "b"):
        beside(f"{name}.png")
        beside(f"{name}.other.png", slice(0, 32))
        beside(f"{name}.mask0.png", slice(0, 8))
        beside(f"{name}.mask1.png", slice(16, 32))
        (tmp_path / f"{name}.txt").write_text(f"a <concept> {name}\n", encoding="utf-8")
    plain = References.read(tmp_path, 32)
    assert plain.names == ["a.png", "b.png"] and not plain.texts and plain.others is None
    assert plain.masks.shape == (2, 1, 32, 32) and plain.masks.mean() == 0.75  # all objects in one
    found = References.read(tmp_path, 32, needs=("masks", "texts", "others"))
    assert found.masks.mean((0, 2, 3)).tolist() == [0.25, 0.5]
    assert found.texts == ["a <concept> a", "a <concept> b"] and (found.others == 1).all()
    (tmp_path / "b.txt").write_text("another <concept>", encoding="utf-8")
    again = References.read(tmp_path, 32, needs=("masks", "texts", "others"))
    assert again.digest != found.digest and References.read(tmp_path, 32).digest == plain.digest


def test_what_is_missing_beside_a_reference_is_said(beside, tmp_path):
    beside("a.png")
    beside("b.png")
    for needs, words in (("texts", "NAME.txt"), ("masks", "NAME.mask0.png"), ("others", "NAME.other.png")):
        with pytest.raises(UserError, match=f"a.png has no {needs} beside it.*{words}"):
            References.read(tmp_path, 32, needs=(needs,))
    for name in ("a.mask0.png", "a.mask1.png", "b.mask0.png"):
        beside(name, slice(0, 8))
    with pytest.raises(UserError, match=r"\[1, 2\] masks"):
        References.read(tmp_path, 32, needs=("masks",))


def test_texts_are_the_prompts_and_must_name_the_placeholder(backbone, references):
    given = References.read(references, 128)
    given.texts = ["a mug <concept>", "a dog <concept>"]
    data = ReferenceData(TI(backbone), given, 8, 0)
    batch = data.batch(0)
    rows = [next(i for i in range(4) if torch.equal(data.pixels[i], picture)) for picture in batch["pixels"]]
    assert batch["prompt"] == [given.texts[row % 2] for row in rows] and len(set(batch["prompt"])) == 2
    given.texts = ["a mug", "a dog <concept>"]
    with pytest.raises(UserError, match="'a mug' has no <concept>"):
        ReferenceData(TI(backbone), given, 8, 0)
