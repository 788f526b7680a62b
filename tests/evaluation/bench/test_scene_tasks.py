"""The tasks of scenes, poses, faces and edits, judged by judges that are perfect and blind."""

import numpy as np
import pytest
import torch
from perfect import Perfect
from PIL import Image

from escdiff.evaluation.bench import pictures
from escdiff.evaluation.bench.run import Bench
from escdiff.evaluation.bench.scenes import readings, requests
from escdiff.evaluation.bench.scenes.edits import score_edits
from escdiff.evaluation.bench.scenes.paint import make_scenes
from escdiff.evaluation.bench.tasks import SCENES, TASKS
from escdiff.mini.data.sheets import ABSENT, labels_of
from escdiff.mini.recipes.scene_oracle import grid_targets
from escdiff.mini.scene_oracle import CLASSES, SceneOracleConfig
from escdiff.mini.world.rendering.render import boxes


class Knowing:
    """A perfect judge: it knows every picture that was rendered, and answers as the network would."""

    config = SceneOracleConfig()

    def __init__(self):
        self.known = {}

    def watch(self, render):
        def watching(factors, size=128):
            rendered = render(factors, size)
            for image, picture, masks in zip(rendered.image, factors, rendered.visible, strict=True):
                self.known[image.tobytes()] = (picture, boxes(masks).tolist())
            return rendered

        return watching

    def read(self, pixels):
        images = ((pixels + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
        labels = labels_of(*zip(*(self.known[image.tobytes()] for image in images), strict=True))
        grid = grid_targets(labels, len(self.config.families), 16)
        owner = grid["owner"].clamp_min(0)
        out = {"centre": 100 * (grid["centre"] - 0.9), "reach": _own(grid["reach"], owner)}
        out["color"] = _own(labels["color"][..., None, None].expand(-1, -1, -1, 16, 16), owner)
        for name, words in CLASSES.items():
            known = labels[name] != ABSENT
            out[name] = torch.nn.functional.one_hot(labels[name].clamp_min(0), len(words)) * known[:, None]
        return out | {"face_id": torch.nn.functional.normalize(labels["face"] - 0.5, dim=-1)}

    def embed(self, name, pixels):
        return self.read(pixels)[name]


class Blind(Knowing):
    """Sees the same in every picture."""

    def read(self, pixels):
        out = super().read(pixels)
        return {name: torch.zeros_like(value) + value[:1] for name, value in out.items()}


def _own(values, owner):
    """Of (B, 3, C, h, w) the owner's (B, C, h, w)."""
    return values.gather(1, owner[:, None, None].expand(-1, 1, values.shape[2], -1, -1))[:, 0]


class PerfectScenes(Perfect):
    """Also edits perfectly; `wrong` paints the next request's picture in the place of each."""

    wrong = False

    def paint(self, asked, references, seeds, advance, controls=()):
        self.painted += len(asked)
        expected = [request.expected for request in asked]
        if self.wrong:
            expected = [*expected[1:], requests.scene(1, 1)[0].expected]
        return pictures.draw(expected)

    def edit(self, before, source, prompt, seed):
        (request,) = [r for r in requests.edit_pair(0, 6) if r.prompt == prompt and r.source == source]
        return before if self.wrong else pictures.draw([request.expected])[0]


@pytest.fixture
def models(tiny_backbone, oracle, monkeypatch, request):
    judge = getattr(request, "param", Knowing)()
    for place in ("pictures", "scenes.paint"):
        monkeypatch.setattr(f"escdiff.evaluation.bench.{place}.render", judge.watch(pictures.render))
    return PerfectScenes(tiny_backbone, oracle, fingerprints=("x", "x", "x"), scene_oracle=judge)


def scored(models, name, count):
    made = make_scenes(models, TASKS[name].draw(0, count), range(count), lambda n: None)
    values = {}
    for record, _ in made:
        for score, value in record.values.items():
            values.setdefault(score, []).append(value)
    return {score: float(np.mean(found)) for score, found in values.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("scene", 20), ("pose", 6), ("identity", 4), ("edit_pair", 6)])
def test_the_truth_gets_full_marks_and_another_picture_does_not(models, name, count):
    right = scored(models, name, count)
    leaks = {s for s in right if "leak" in s or "chance" in s}
    assert leaks <= {"extract_leak", "own_extract_leak", "chance_done"} and right.get("extract_leak", 0) == 0
    for score in right.keys() - leaks:
        assert right[score] == pytest.approx(100 if score == "kept" else 1, abs=0.06 if "iou" in score else 1e-6), score
    models.wrong = True
    wrong = scored(models, name, count)
    for score in ("pair", "bind", "extract", "relation", "place", "done", "reads"):
        assert wrong.get(score, 0) <= 0.15, score
    for score in ("all", "face_id"):
        assert wrong.get(score, 0) <= 0.25, score
    own = {score: value for score, value in right.items() if score.startswith("own_")}
    assert own == {score: wrong[score] for score in own}  # the judge's own does not depend on the model


@pytest.mark.slow
@pytest.mark.parametrize("models", [Blind], indirect=True)
def test_a_blind_judge_scores_chance_at_most(models):
    scene, pose, face = (scored(models, name, count) for name, count in (("scene", 20), ("pose", 8), ("identity", 4)))
    assert max(scene[name] for name in ("pair", "bind", "extract", "relation", "place")) <= 0.25
    assert pose["all"] <= 0.25 and face["face_id"] == face["all"] == 0  # a tie is no recognition


def test_a_perfect_reading_of_what_is_asked_gets_full_marks_and_of_the_next_none():
    asked = [*requests.scene(0, 10), *requests.pose(0, 2), *requests.edit_pair(0, 6)]
    truths = readings.truths([request.expected for request in asked])
    for request, right, wrong in zip(asked, truths, truths[1:] + truths[:1], strict=True):
        for score, value in readings.judge(request, right).items():
            assert value == pytest.approx(float("leak" not in score), abs=1e-6), (request.kind, score)
        parts = ("iou", "pose", "unnamed", "color")  # what another picture may well have
        assert not any(value for score, value in readings.judge(request, wrong).items() if score not in parts)


def test_an_edit_left_undone_does_not_read_as_done():
    asked = requests.edit_pair(0, 12)
    for request, truth in zip(asked, readings.truths([request.before for request in asked]), strict=True):
        assert not any(readings.judge(request, truth).values())


def test_relations_are_told_by_boxes_where_the_picture_has_two_sides():
    low, high = (0.4, 0.6, 0.6, 0.9), (0.4, 0.1, 0.6, 0.5)
    left, right = (0.0, 0.3, 0.3, 0.6), (0.6, 0.3, 0.9, 0.6)
    near, far = (0.3, 0.5, 0.6, 0.9), (0.4, 0.4, 0.7, 0.7)
    for relation, first, second in (
        ("left of", left, right), ("right of", right, left), ("on", high, low), ("inside", high, low),
        ("under", low, high), ("in front of", near, far), ("behind", far, near), ("hovering above", high, low),
    ):  # fmt: skip
        assert readings.in_order(relation, first, second) and not readings.in_order(relation, second, first)
    assert readings.in_order("leaning against", left, right) and readings.in_order("leaning against", right, left)


def test_edits_by_hand():
    before = torch.full((2, 3, 4, 4), -1.0)
    after = before.clone()
    after[:, :, :2] = 1.0  # the upper half turns white
    half = before.clone()
    half[:, :, :2] = 0.2  # 0.6 of the way: 0.16 of the squared change is left
    half[:, :, 2:] += 0.2  # and the lower half is off by 0.1 of the range
    first, second = score_edits(torch.stack([half[0], before[0]]), before, after)
    assert first["done"] == 1 and second["done"] == 0
    assert first["chance_done"] == 0 and second["chance_done"] == 1  # each other's
    assert first["kept"] == pytest.approx(20) and second["kept"] == pytest.approx(100)


def test_prompts_say_what_is_asked_and_hold_their_placeholders():
    for request in requests.scene(0, 20):
        names = {"pair": ("<one>", "<two>"), "extract": ("<concept>",)}.get(request.kind, ())
        assert all(name in request.prompt for name in names) and ("<" in request.prompt) == bool(names)
        assert request.expected.scene.background in request.prompt
        families = [thing.shape.family for thing in request.expected.things]
        assert all((family in request.prompt) != bool(names) for family in families)
        assert all(phrase in request.prompt for phrase in request.boxes)
    for request in requests.pose(0, 6):
        (reference,) = request.references.values()
        (own,), (target,) = reference.things, request.expected.things
        assert own.pose == target.pose and own.shape.family != target.shape.family
        assert target.shape.family in request.prompt and request.expected.names["pose"] not in request.prompt
    for request in requests.identity(0, 6):
        own, target = request.references["shape"], request.expected
        assert own.things[0].shape == target.things[0].shape and own.names != target.names
        assert target.names["expression"] in request.prompt
    for request in requests.edit_pair(0, 12):
        assert request.prompt != request.source and request.instruction


def test_what_cannot_be_judged_is_left_out_with_a_sentence(bench, tmp_path, caplog):
    assert bench.models.scene_oracle is None
    got = bench.run(["text", *(name for name, task in TASKS.items() if task.judged)])
    assert {key.split("/")[0] for key in got} == {"oracle", "text"}
    assert "scene, pose, identity left out" in caplog.text and "experiment=mini/scene_oracle" in caplog.text
    assert "tells no instances apart" in caplog.text


@pytest.mark.slow
def test_the_bench_keeps_scene_tasks_and_shows_them(models, tmp_path):
    numbers = {name: 5 if name == "scene" else 2 for name in TASKS}
    run = Bench(models, tmp_path, numbers=numbers)
    names = [name for name, task in TASKS.items() if task.make == SCENES]
    first = run.run(names)
    painted = models.painted
    again = Bench(models, tmp_path, numbers=numbers)
    assert again.run(names) == first and models.painted == painted
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert all(f'<section id="{name}">' in page for name in names) and "things read" in page
    assert "own_" not in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert first["scene/pair"]["mean"] == first["scene/own_pair"]["mean"] == 1


def test_a_name_stands_for_the_whole_concept_of_its_reference(real_models):
    red, blue = (Image.new("RGB", (64, 64), color) for color in ("red", "blue"))
    whole = real_models._vectors([{"shape": red, "appearance": red}])["<concept>"]
    named = real_models._vectors([{"one": red, "two": blue}])
    assert set(named) == {"<one>", "<two>"} and torch.equal(named["<one>"], whole)
    assert not torch.equal(named["<two>"], whole)


def test_what_is_transparent_in_a_reference_counts_nothing(real_models):
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (16, 16, 48, 48))
    seen = []
    for beside in ("green", "purple"):
        picture = Image.new("RGB", (64, 64), beside)
        picture.paste("red", (16, 16, 48, 48))
        picture.putalpha(mask)
        seen.append(real_models._vectors([{"shape": picture}])["<shape>"])
    assert torch.equal(*seen)


@pytest.mark.slow
def test_scenes_faces_and_edits_are_painted_by_real_parts(real_models):
    for name, count in (("scene", 5), ("pose", 1), ("identity", 1), ("edit_pair", 1)):
        asked, advanced = TASKS[name].draw(0, count), []
        made = make_scenes(real_models, asked, range(count), advanced.append)
        assert sum(advanced) == count and [record.request for record, _ in made] == asked
        for record, shown in made:
            beside = len(record.request.references) + bool(record.request.before)
            assert shown["result"].size == (128, 128) and len(shown) == 1 + beside
            assert all(np.isfinite(value) for value in record.values.values()) and record.values
