"""The edit bench on tiny parts: exact cases, every editor, resuming, and figures that are known beforehand."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel
from typer.testing import CliRunner

from escdiff.backbone import load_backbone
from escdiff.backbone.adapters.wide_input import widened
from escdiff.encoder import ConceptEncoder, EncoderConfig, load_vision
from escdiff.evaluation import __main__ as door
from escdiff.evaluation.bench import scores
from escdiff.evaluation.bench.models import Models
from escdiff.evaluation.editing.cases import make_cases
from escdiff.evaluation.editing.edits import EDITS, KINDS, draw_edits, judge
from escdiff.evaluation.editing.places import PLACES, box_of, draw_places, overlap
from escdiff.evaluation.editing.run import EditBench
from escdiff.evaluation.editing.tools import Tools
from escdiff.mini.world.edits import Edit
from escdiff.mini.world.world import TWO_ALIKE
from escdiff.pipelines.instruct import make_instruct
from escdiff.pipelines.placer import Placer
from escdiff.support.errors import UserError

COUNT = 4


class Scripted(Models):
    """Reads what it is told to."""

    script: list = []  # noqa: RUF012

    def read(self, pictures):
        assert len(pictures) == len(self.script)
        return self.script


@pytest.fixture(scope="module")
def cases():
    return make_cases(draw_edits(0, COUNT))


@pytest.fixture(scope="module")
def tools(tmp_path_factory, tiny_folder, oracle):
    folder = str(tmp_path_factory.mktemp("tower"))
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**tower, image_size=32, patch_size=16)).save_pretrained(folder)
    backbone = load_backbone(str(tiny_folder))
    config = EncoderConfig(vision=folder, shape_depths=(1, 2), appearance_depths=(0, 1), features=16)
    encoder = ConceptEncoder.for_backbone(config, load_vision(folder), backbone, backbone.p_plus()).eval()
    models = Models(backbone, oracle, encoder, steps=2, guidance=2.0, fingerprints=("x", "y"))
    root = tmp_path_factory.mktemp("models")
    make_instruct(backbone, widened(backbone.unet, 8).eval()).save_pretrained(root / "instruct")
    Placer.fresh(backbone.unet, load_vision(folder)).save_pretrained(root / "anydoor")
    tools = Tools(models, {"instruct_pix2pix": root / "instruct", "anydoor": root / "anydoor"})
    tools.placer = Placer.from_pretrained(root / "anydoor", backbone.unet, folder)  # its tower is a folder
    return tools


def test_cases_are_edits_of_one_object_and_say_what_stays(cases):
    assert [case.edit.kind for case in cases] == list(KINDS)
    assert draw_edits(0, 2) == draw_edits(0, COUNT)[:2] != draw_edits(1, 2)
    for case in cases:
        before, after = (np.asarray(picture) for picture in (case.before, case.after))
        assert ((before == after).all(-1) == case.same[0].numpy().astype(bool)).all()
        assert 0.02 < case.same.mean() < 0.99 and case.words[0] != case.words[1]
        assert Edit.from_dict(json.loads(json.dumps(case.edit.to_dict()))) == case.edit
    attributes = [case.reference and case.reference[0] for case in cases]
    assert attributes == ["appearance", "appearance", "shape", None]


def test_judging_knows_right_and_kept(cases, tools, oracle):
    """The render after is right and keeps all; the one before is wrong and keeps all; a wrong reading keeps less."""
    models = Scripted(tools.models.backbone, oracle)
    case, judged = cases[0], Tools(models)
    truth = scores.truth(case.expected)
    (thing,) = case.edit.before.things
    other = next(color for color in ("red", "blue") if color != truth["color"])
    models.script = [truth, truth | {"color": other}, truth | {"family": "none", "background": "none"}]
    records = judge(judged, [case] * 3, [case.after, case.before, case.after])
    assert [record.values["right"] for record in records] == [1.0, 0.0, 1.0]
    assert [round(record.values["kept"], 2) for record in records] == [1.0, 1.0, 0.33]
    assert records[1].values["psnr_same"] == float("inf") == records[0].values["psnr_target"]
    assert records[1].values["psnr_target"] < 30 and "right_color" in records[0].values and thing


def test_an_untouched_picture_is_never_right_and_the_edit_always_is(tools, oracle):
    """Whichever of two colours is read first, also in patterns that treat both alike."""
    cases = make_cases(draw_edits(0, 60))
    judged = Tools(Scripted(tools.models.backbone, oracle))

    def right(readings):
        judged.models.script = readings
        return [record.values["right"] for record in judge(judged, cases, [case.before for case in cases])]

    def exchanged(reading):
        return reading | {"color": reading["color2"], "color2": reading["color"],
                          "rgb": reading["rgb2"], "rgb2": reading["rgb"]}  # fmt: skip

    alike = [c.edit.kind == "color" and c.expected.material.pattern in TWO_ALIKE for c in cases]
    before = [scores.truth(replace(case, edit=replace(case.edit, after=case.edit.before)).expected) for case in cases]
    after = [scores.truth(case.expected) for case in cases]
    assert any(alike)
    assert not any(right(before)) and not any(right([exchanged(reading) for reading in before]))
    assert all(right(after))
    both_orders = right([exchanged(reading) if same else reading for reading, same in zip(after, alike, strict=True)])
    assert all(both_orders)


def test_every_editor_paints_what_it_can(cases, tools):
    masked = ("plug_and_play_masked", "attribute_transfer")  # a background is no case for them
    for name, edit in EDITS.editors.items():
        made = [edit(tools, case) for case in (cases[0], cases[2], cases[3])]
        assert [picture is not None for picture in made] == [True, True, name not in masked]
        assert all(picture.size == (128, 128) for picture in made if picture is not None)
    assert len(tools._sources) == 3  # each picture was inverted once


def test_a_run_is_kept_and_goes_on(tools, tmp_path, monkeypatch):
    names = ["unchanged", "truth", "img2img"]
    first = EditBench(EDITS, tools, tmp_path, names[:2], COUNT).run("command")
    calls = []
    monkeypatch.setitem(EDITS.editors, "unchanged", lambda *_: calls.append(1))
    again = EditBench(EDITS, tools, tmp_path, names, COUNT).run("command")
    assert not calls and again["unchanged"] == first["unchanged"] and again.keys() == set(names)
    for score, found in first["unchanged"].items():
        assert found["low"] <= found["mean"] <= found["high"], score
    text = (tmp_path / "edits.md").read_text(encoding="utf-8")
    assert "| img2img |" in text and "command" in text and (tmp_path / "edits.png").is_file()
    about = json.loads((tmp_path / "edits.json").read_text(encoding="utf-8"))["about"]
    assert about["cases"] == COUNT and about["seconds"].keys() == set(names)


def test_an_inversion_is_charged_to_every_editor_that_uses_it(tools, tmp_path, monkeypatch):
    clock = [0.0]

    def invert(*_):
        clock[0] += 10.0

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr("escdiff.evaluation.editing.tools.invert", invert)
    black = Image.new("RGB", (128, 128))
    use = lambda tools, case: tools.source(case) or black  # noqa: E731
    editors = {"first": use, "second": use, "third": lambda tools, case: black}
    for name, editor in editors.items():
        monkeypatch.setitem(EDITS.editors, name, editor)
    monkeypatch.setattr(tools, "_sources", {})
    for names in (list(editors), list(editors)[::-1]):
        folder = tmp_path / names[0]
        EditBench(EDITS, tools, folder, names, COUNT).run("command")
        seconds = json.loads((folder / "edits.json").read_text(encoding="utf-8"))["about"]["seconds"]
        assert seconds == {"first": 10.0, "second": 10.0, "third": 0.0}
        tools._sources.clear()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "unchanged,foo"], "names foo"),
        (["--methods", " "], "is empty"),
        (["--methods", "instruct_pix2pix"], "without its model"),
        (["--instruct", "nowhere"], "is no folder"),
    ],
)
def test_mistakes_are_one_sentence_and_nothing_is_made(arguments, words, tmp_path):
    result = CliRunner().invoke(door.app, ["edits", "--out", str(tmp_path / "out"), *arguments])
    assert isinstance(result.exception, UserError) and words in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_all_leaves_out_what_has_no_model():
    chosen = EDITS.choose("all", ["instruct_pix2pix"])
    assert "instruct_pix2pix" not in chosen and "img2img" in chosen


def test_objects_are_put_into_their_boxes(tools, tmp_path):
    table = EditBench(PLACES, tools, tmp_path, PLACES.choose("all"), 2).run("command")
    assert table.keys() == {"unchanged", "truth", "anydoor"}
    for found in table.values():
        assert 0 <= found["iou"]["low"] <= found["iou"]["high"] <= 1 and found["psnr_outside"]["n"] == 2
    assert (tmp_path / "places.md").is_file() and (tmp_path / "places.png").is_file()
    assert draw_places(0, 1) == draw_places(0, 2)[:1]


def test_overlap_is_of_the_box_and_what_was_painted_in_it():
    (case,) = make_cases(draw_places(0, 1))
    inside = torch.zeros(128, 128)
    inside[32:64, 32:64] = 1
    painted = case.before.copy()
    painted.paste((255, 0, 0), (32, 32, 64, 48))  # the upper half of it
    painted.paste((0, 255, 0), (100, 100, 120, 120))  # elsewhere, which counts nothing
    assert overlap(painted, case.before, inside) == 0.5 and overlap(case.before, case.before, inside) == 0.0
    left, top, right, bottom = box_of(case)
    mask = case.objects[0].nonzero() / 128
    assert (mask.amin(0) >= torch.tensor([top, left])).all() and (mask.amax(0) < torch.tensor([bottom, right])).all()
