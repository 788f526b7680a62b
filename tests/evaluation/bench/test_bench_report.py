"""ESC-Bench's tables and cards, on records with known mistakes; how pictures are made and looked at beside them."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from escdiff.evaluation.bench import report, scores
from escdiff.evaluation.bench.instances import Request
from escdiff.evaluation.bench.models import fingerprint
from escdiff.evaluation.bench.paint import make
from escdiff.evaluation.bench.pictures import draw, pixels_of
from escdiff.evaluation.bench.records import Record
from escdiff.evaluation.bench.tasks import TASKS
from escdiff.mini.world.rendering.render import render


def record(mug, **wrong):
    """Of a request for the mug, read with some mistakes."""
    reading = scores.truth(mug) | wrong
    return Record(Request("a mug", mug), reading, scores.judge(("family", "color", "delta_e"), reading, mug))


def test_mistakes_are_shares_then_colours(mug):
    right, off = record(mug), record(mug, rgb=[0.0, 0.0, 0.0])
    both_wrong, one = record(mug, family="dog", color="blue"), record(mug, color="blue")
    assert report._mistakes("both", right) == (0, 0)
    assert report._mistakes("both", both_wrong)[0] == 2 and report._mistakes("both", one)[0] == 1
    assert report._mistakes("both", off)[1] > 30
    ordered = sorted([right, one, off, both_wrong], key=lambda r: report._mistakes("both", r), reverse=True)
    assert ordered == [both_wrong, one, off, right]


def test_in_a_leak_the_share_itself_is_the_mistake(mug):
    values = {"shape_to_appearance": 1.0, "chance_shape_to_appearance": 1.0}
    leaking = replace(record(mug), values=values)
    assert report._mistakes("leak", leaking) == (1.0, 0.0)  # what chance finds is nobody's mistake
    copied = replace(record(mug), values={"rate": 1.0, "rate_of_renders": 1.0})
    assert report._mistakes("copy", copied) == (1.0, 0.0)


def test_a_card_says_what_was_read_and_what_it_should_have_been(mug):
    card = report.card(record(mug, family="dog", rgb=[0.0, 0.5, 1.5]))
    assert card.wrong == ["dog, not mug"] and dict(card.facts)["family read"] == "dog"
    assert dict(card.facts)["colour read"] == "#0080ff"
    asked = "#" + "".join(f"{round(255 * v):02x}" for v in mug.material.rgb)
    assert dict(card.facts)["colour asked"] == asked


def test_two_colours_of_a_checkered_thing_may_be_read_in_either_order(mug):
    alike = replace(mug, material=replace(mug.material, pattern="checkered"))
    names = {"color": "color2", "color2": "color", "rgb": "rgb2", "rgb2": "rgb"}
    true = scores.truth(alike)
    swapped = {name: true[names.get(name, name)] for name in true}
    for reading in (true, swapped):
        found = scores.judge(("color", "color2", "delta_e", "appearance"), reading, alike)
        assert found == {"color": 1, "color2": 1, "delta_e": 0, "appearance": 1}
    dotted = replace(mug, material=replace(mug.material, pattern="dotted"))
    reading = {name: scores.truth(dotted)[names.get(name, name)] for name in true}
    assert scores.score("color", reading, dotted) == 0  # dots lie on a ground: the two are not alike


def test_a_row_has_the_oracles_own_score_beside_it():
    share = {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 4}
    metrics = {"oracle/family": share | {"mean": 0.95}, "swap/shape": share, "floor/other_family": share,
               "both/psnr": share | {"mean": 30.0, "low": 29.0, "high": 31.0}}  # fmt: skip
    assert report._row("swap/shape", metrics) == ("swap/shape", "50.0 %", "25.0 % – 75.0 %", "4", "95.0 %")
    assert report._row("floor/other_family", metrics)[-1] == "95.0 %"
    assert report._row("both/psnr", metrics)[1:] == ("30.0", "29.0 – 31.0", "4", "")


def test_what_counts_as_right_in_the_figure_of_time():
    assert report._is_right("both", "both/family") and report._is_right("swap", "swap/appearance")
    for task, key in (("leak", "leak/shape_to_appearance"), ("both", "both/delta_e"), ("floor", "floor/other_family"),
                      ("both", "both/chance_x")):  # fmt: skip
        assert not report._is_right(task, key)


def test_the_matrix_has_shapes_down_and_appearances_across(mug, tmp_path):
    """Each result is painted in grey 10 * row + column, its references in 100 + row and 200 + column."""
    (tmp_path / "pictures" / "swap").mkdir(parents=True)
    found = []
    for row in range(2):
        for column in range(2):
            named = {"result": 10 * row + column, "shape reference": 100 + row, "appearance reference": 200 + column}
            paths = {}
            for caption, grey in named.items():
                paths[caption] = f"{row}{column}{caption}.png"
                Image.new("RGB", (96, 96), (grey,) * 3).save(tmp_path / paths[caption])
            found.append(replace(record(mug), pictures=paths))
    sheet = np.asarray(Image.open(tmp_path / report._matrix(tmp_path, found)).convert("RGB"))[:, :, 0]
    greys = set(np.unique(sheet)) & {0, 1, 10, 11, 100, 101, 200, 201}
    assert greys == {0, 1, 10, 11, 100, 101, 200, 201}

    def place(grey):
        rows, columns = np.nonzero(sheet == grey)
        return np.median(rows), np.median(columns)

    assert place(100)[0] == place(0)[0] == place(1)[0] < place(101)[0] == place(10)[0]
    assert place(200)[1] == place(0)[1] == place(10)[1] < place(201)[1] == place(1)[1]


class Sight:
    """A CLIP whose vectors are known: a picture's mean colour, a text's length."""

    def pictures(self, pictures):
        return torch.tensor(np.array([np.asarray(p, float).mean((0, 1)) for p in pictures]), dtype=torch.float32)

    def texts(self, texts):
        return torch.tensor([[float(len(text)), 0.0, 0.0] for text in texts])


@pytest.mark.parametrize(("task", "request_of"), [("text", "text"), ("both", "both"), ("shape", "shape")])
def test_clips_opinion_is_of_the_text_or_of_the_reference(bench, task, request_of):
    models = bench.models
    models.clip = Sight()
    requests = TASKS[request_of].draw(0, 2)
    made = make(models, TASKS[task], requests, [0, 1], lambda n: None)
    for (one, pictures), request in zip(made, requests, strict=True):
        result = models.clip.pictures([pictures["result"]])
        against = {"text": models.clip.texts([request.prompt])}
        if request.shape:
            against["both"] = models.clip.pictures(draw([request.shape]))
        if task in against:
            expected = torch.cosine_similarity(result, against[task]).item()
            assert one.values["clip_t" if task == "text" else "clip_i"] == pytest.approx(expected, abs=1e-6)
        else:
            assert not {"clip_t", "clip_i"} & set(one.values)


def test_captions_name_the_references(bench):
    for task, captions in (("both", {"reference"}), ("swap", {"shape reference", "appearance reference"}),
                           ("shape", {"shape reference"}), ("text", set())):  # fmt: skip
        requests = TASKS[task].draw(0, 4)[:2]
        for _, pictures in make(bench.models, TASKS[task], requests, [0, 1], lambda n: None):
            assert set(pictures) == captions | {"result"}


def test_a_stranger_is_what_goes_through_the_vae(bench):
    requests = TASKS["stranger"].draw(0, 2)
    seen = []
    bench.models.reconstruct = lambda pixels, advance: seen.append(pixels) or pixels
    made = make(bench.models, TASKS["stranger"], requests, [0, 1], lambda n: None)
    assert torch.equal(seen[0], pixels_of(draw([r.shown for r in requests])))
    assert all(one.values["psnr"] == pytest.approx(100) for one, _ in made)  # nothing was lost: the cap


def test_what_is_asked_for_twice_is_rendered_once(mug, monkeypatch):
    asked = []
    watched = lambda factors, size: asked.append(len(factors)) or render(factors, size)  # noqa: E731
    monkeypatch.setattr("escdiff.evaluation.bench.pictures.render", watched)
    other = replace(mug, scene=replace(mug.scene, background="white"))
    first, second, third = draw([mug, other, mug])
    assert asked == [2] and first is third and first is not second


def test_any_new_weights_are_another_fingerprint(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"12")
    first = fingerprint(tmp_path, "tiny")
    assert first == fingerprint(tmp_path, "tiny") != fingerprint(tmp_path, "other")
    (tmp_path / "a.bin").write_bytes(b"123")
    assert fingerprint(tmp_path, "tiny") != first


def test_the_vae_is_asked_for_the_mean_of_its_latents(bench, monkeypatch):
    """By batches, each advanced; decoded values beyond the range are cut."""
    models, steps = bench.models, []
    models.batch_size = 2
    mean = torch.full((3, 4, 2, 2), 0.25)
    moments = torch.cat([mean, torch.full_like(mean, -30.0)], 1)
    monkeypatch.setattr(type(models.backbone), "moments", lambda self, pixels: moments[: len(pixels)])
    given = []

    def decode(latents):
        given.append(latents)
        return SimpleNamespace(sample=torch.full((len(latents), 3, 4, 4), 1.5))

    monkeypatch.setattr(models.backbone.vae, "decode", decode)
    got = models.reconstruct(torch.zeros(3, 3, 16, 16), steps.append)
    assert torch.equal(torch.cat(given), mean) and steps == [2, 1] and got.shape == (3, 3, 4, 4) and (got == 1).all()
