"""ReVersion and ADI: what they are where nothing of them acts, and their objectives against plain lines."""

import math
import shutil

import numpy as np
import pytest
import torch
from method_step import step_of
from PIL import Image

from escdiff.concept import Concept
from escdiff.methods import losses
from escdiff.methods.adi import ADI, action_channels
from escdiff.methods.reversion import ReVersion, content
from escdiff.methods.ti import TI
from escdiff.methods.xti import XTI
from escdiff.support.errors import UserError
from escdiff.training.method.module import MethodModule
from escdiff.training.method.references import ReferenceData, References


@pytest.fixture
def told(references, tmp_path):
    """Two pictures with texts and counterparts."""
    rng = np.random.default_rng(1)
    for name, word in (("a", "mug"), ("b", "dog")):
        shutil.copy(references / f"{name}.png", tmp_path)
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(tmp_path / f"{name}.other.png")
        (tmp_path / f"{name}.txt").write_text(f"a {word} <relation> a chair", encoding="utf-8")
    return tmp_path


def test_reversion_without_steering_and_with_uniform_times_is_ti(backbone, references):
    reversion = ReVersion(backbone, init="object", steer=0.0, high_noise=0.0)
    ti = TI(backbone)
    a, b = step_of(reversion, references), step_of(ti, references)
    assert torch.equal(a["loss"], b["loss"]) and torch.equal(reversion.table.grad, ti.table.grad)
    assert reversion.phrase == "<relation>"


def test_steering_by_hand():
    word, near, far = torch.randn(1, 5), torch.randn(4, 5), torch.randn(2, 5)

    def weigh(other):
        cosine = (word[0] @ other) / (word.norm() * other.norm())
        return math.exp(cosine / 0.07)

    wanted = sum(weigh(other) for other in near)
    expected = -math.log(wanted / (wanted + sum(weigh(other) for other in far)))
    assert losses.steering(word, near, far, 0.07).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert losses.steering(word, near, far[:0], 0.07) == 0


def test_reversion_steers_its_word_alone_and_away_from_the_things(backbone, told, monkeypatch):
    method = ReVersion(backbone, relations=["on", "under", "behind", "inside"])
    given = References.read(told, 128, needs=method.needs)
    data, module = ReferenceData(method, given, 4, 0, flip=False), MethodModule(method, 1e-3, 10)
    module.on_fit_start()
    term = module.training_step(data.batch(0), 0)["logs"]["steering"]
    module.on_fit_end()
    prompts, word = backbone.prompts, method.vectors({})["relation"][0, 0, 0]
    near = torch.cat([prompts.word_embedding(w, 1) for w in ("on", "under", "behind", "inside")])
    far = torch.cat([prompts.word_embedding(w, 1) for w in ("mug", "dog", "chair")])
    torch.testing.assert_close(term, 0.01 * losses.steering(word, near, far, 0.07).detach())
    assert not method.relations.requires_grad and set(dict(method.named_parameters())) == {"table"}
    assert content("A photo of a red-striped mug <relation> the chair") == ["red", "striped", "mug", "chair"]


def test_reversion_draws_high_noise_more_often(backbone):
    weights = ReVersion(backbone).timestep_density(0.0)
    assert weights[0] == 0.5 and weights[500].item() == pytest.approx(1.0, abs=1e-6)
    assert weights[999].item() == pytest.approx(1.5, abs=1e-4)
    assert ReVersion(backbone, high_noise=0.0).timestep_density(0.25) == 0.25


@pytest.mark.parametrize("relations", ["prepositions", []])
def test_reversion_needs_words_to_steer_to(backbone, relations):
    with pytest.raises(UserError, match="method.relations="):
        ReVersion(backbone, relations=relations)


def test_adi_with_nothing_masked_is_xti(backbone, told):
    """The exemplars' loss and gradient, among the same pictures with the same noise."""
    (told / "a.txt").write_text("a mug <action>", encoding="utf-8")
    (told / "b.txt").write_text("a dog <action>", encoding="utf-8")
    adi, xti = ADI(backbone, init="object", masked=0.0), XTI(backbone)
    xti.copies, found = 3, []
    given = References.read(told, 128, needs=adi.needs)
    batch = ReferenceData(adi, given, 2, 0, flip=False).batch(0)
    whole = {**batch, "prompt": [text.replace("<action>", "<concept>") for text in batch["prompt"]],
             "weight": torch.tensor([3.0, 3.0, 0.0, 0.0, 0.0, 0.0])}  # fmt: skip
    for method, given in ((adi, batch), (xti, whole)):
        module = MethodModule(method, 1e-3, 10)
        module.on_fit_start()
        torch.manual_seed(0)
        out = module.training_step(given, 0)
        out["loss"].backward()
        module.on_fit_end()
        found.append(out["logs"]["denoising"])
    torch.testing.assert_close(*found)
    torch.testing.assert_close(adi.table.grad, xti.table.grad, rtol=1e-3, atol=1e-6)


def test_adi_masks_channels_that_are_not_the_actions(backbone):
    own = torch.tensor([1.0, 1.0, 1.0, 1.0])
    action = torch.tensor([1.1, 3.0, 1.2, 5.0])  # agrees in channels 0 and 2
    scene = torch.tensor([4.0, 5.0, 1.3, 1.1])  # differs in channels 0 and 1
    assert action_channels(own, action, scene, 0.5).tolist() == [1, 0, 0, 0]
    assert action_channels(own, action, scene, 0.25).tolist() == [1, 1, 1, 0]
    assert action_channels(own, action, scene, 0.0).tolist() == [1, 1, 1, 1]
    gradients = torch.stack([own, action, scene])[:, None, None, None]
    masked = ADI(backbone, masked=0.5).mask(gradients)
    assert masked[0].flatten().tolist() == [1, 0, 0, 0] and not masked[1:].any()


def test_adis_batches_are_triples(backbone):
    method = ADI(backbone)
    rows = method.rows(np.random.default_rng(0), 6, 50)
    exemplar, action, scene = rows.reshape(3, 50)
    assert set(exemplar) == set(action) == {0, 1, 2} and (exemplar != action).all()
    assert (scene == exemplar + 3).all()


@pytest.mark.parametrize("name", ["reversion", "adi", "compositional_inversion"])
def test_they_train_and_export(fit, told, name):
    if name == "adi":
        for file in told.glob("*.txt"):
            file.write_text("a mug <action>", encoding="utf-8")
    settings = ["method.init=mug"] if name == "compositional_inversion" else []
    for other in told.glob("*.other.png") if name == "compositional_inversion" else ():
        other.unlink()
    concept = Concept.load(fit(name, *settings, source=told) / "export" / "concept.safetensors")
    attribute = {"reversion": "relation", "adi": "action"}.get(name, "concept")
    assert concept.attributes == (attribute,)
    assert not torch.equal(concept.vectors[attribute][0, 0], concept.anchors[attribute])


def test_what_adi_cannot_do_is_refused(fit, told):
    with pytest.raises(UserError, match="method.masked=1.5"):
        fit("adi", "method.masked=1.5", source=told)
    with pytest.raises(UserError, match="has no <action>"):
        fit("adi", source=told)


def test_a_text_that_is_not_utf8_is_one_sentence(told):
    (told / "a.txt").write_bytes("a mug <relation> a chaise-longue für alle".encode("latin-1"))
    with pytest.raises(UserError, match=r"a.txt is no UTF-8 text \(.* at byte \d+\); save it as UTF-8") as caught:
        References.read(told, 128, needs=("texts",))
    assert "\n" not in str(caught.value)
