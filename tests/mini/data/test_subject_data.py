"""Scenes and faces with a reference of each thing: what is drawn, and what a batch says of it."""

import numpy as np
import torch

from escdiff.mini.data import subjects
from escdiff.mini.data.placings import draw_placing
from escdiff.mini.data.subjects import FaceSubjects, SceneSubjects, draw_subjects, show
from escdiff.mini.world import world
from escdiff.mini.world.scene_captions import subject_caption
from escdiff.support.config.data import DataConfig


def test_a_reference_is_the_same_instance_elsewhere():
    for number in range(20):
        picture, references = draw_subjects("scenes", 1, number)
        things = picture.things[:2]
        assert len(references) == len(things) and 1 <= len(things) <= 2
        for thing, other in zip(things, references, strict=True):
            assert len(other.things) == 1 and other.scene != picture.scene
            assert (other.things[0].shape, other.things[0].material) == (thing.shape, thing.material)
    picture, (reference,) = draw_subjects("faces", 1, 0)
    assert reference.things[0].shape == picture.things[0].shape and reference.things[0].face
    assert draw_subjects("faces", 1, 0) == (picture, [reference])


def test_no_thing_of_a_picture_is_a_combination_that_is_held_out():
    pictures = [draw_subjects("scenes", 5, number)[0] for number in range(300)]
    pictures += [draw_placing(5, number).after for number in range(300)]
    assert sum(len(picture.things) > 2 for picture in pictures) > 20
    assert not any(world.held_out(thing.shape, thing.material) for picture in pictures for thing in picture.things)


def test_captions_name_nothing_of_the_subjects():
    for number in range(40):
        picture, _ = draw_subjects("scenes", 2, number)
        text = subject_caption(picture, np.random.default_rng(number))
        assert text.count("<one>") == 1 and text.count("<two>") == (len(picture.things) > 1)
        shown = picture.things[:2]
        assert not any(word in text.split() for thing in shown for word in (thing.shape.family, thing.material.color)
                       if word != picture.scene.background)  # fmt: skip
    picture, _ = draw_subjects("faces", 2, 0)
    text = subject_caption(picture, np.random.default_rng(0))
    assert f"{picture.names['expression']} <one>" in text and "hair" not in text


def test_masks_are_of_the_things_in_their_order():
    drawn = [draw_subjects("scenes", 3, number) for number in range(4)]
    found = show(drawn, 2, 32)
    for row, (picture, _) in enumerate(drawn):
        covered = found["masks"][row].any((1, 2))
        assert covered[0] and covered[1] == (len(picture.things) > 1)
        assert found["reference_masks"][row].any((1, 2)).tolist() == covered.tolist()
        assert not (found["masks"][row][0] & found["masks"][row][1]).any()  # what is seen of each


def test_batches_of_prepared_data_are_the_same_at_every_start(tmp_path, tiny_backbone, monkeypatch):
    monkeypatch.setattr(subjects, "PER_CHUNK", 2)
    data = DataConfig(root=str(tmp_path), still_life=str(tmp_path), num_samples=4, size=32, batch_size=2)
    for kind, most in ((SceneSubjects, 2), (FaceSubjects, 1)):
        kind.prepare(data)
        first, again = (next(iter(kind.of_config(data, 7, tiny_backbone, "cpu"))) for _ in range(2))
        assert first["prompt"] == again["prompt"] and torch.equal(first["latent"], again["latent"])
        assert first["references"].shape == (2, most, 3, 32, 32) and first["masks"].shape == (2, most, 32, 32)
        assert first["reference_masks"].shape == (2, most, 1, 32, 32) and len(first["nouns"]) == 2
        assert torch.allclose(first["latent"], tiny_backbone.moments(first["pixels"]), atol=1e-4)
    stamp = sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz"))
    SceneSubjects.prepare(data)
    assert sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*.npz")) == stamp
