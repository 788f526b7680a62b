"""Vectors of networks: by batches, of the whole text that fits, read once; edges of the attribute metrics."""

import numpy as np
import pytest
import torch
from PIL import Image

from escdiff.data.pretrained import read, read_model
from escdiff.evaluation.metrics import features
from escdiff.evaluation.metrics.attributes import FRAME, ROOT_AREA, align, lab_distance, plain_mask
from escdiff.evaluation.metrics.base import PictureMetric
from escdiff.evaluation.metrics.features import ClassToken, Clip, load_clip
from escdiff.support.errors import UserError


def test_batches_change_nothing(clip_folder, pictures, monkeypatch):
    clip = Clip(clip_folder)
    together = clip.pictures(pictures)
    monkeypatch.setattr(features, "BATCH", 3)
    torch.testing.assert_close(clip.pictures(pictures), together, atol=1e-5, rtol=1e-5)
    assert together.shape == (4, 16) and together.dtype == torch.float32 and not together.requires_grad


def test_texts_end_where_clip_ends(clip_folder):
    """77 tokens with start and end, so 75 words; the 76th is cut off."""
    clip = Clip(clip_folder)
    long, longer, shorter = (" ".join(["red"] * 75), " ".join(["red"] * 75 + ["mug"]), " ".join(["red"] * 74 + ["mug"]))
    torch.testing.assert_close(clip.texts([long]), clip.texts([longer]))
    assert not torch.allclose(clip.texts([long]), clip.texts([shorter]))


def test_padding_beside_longer_texts_changes_nothing(clip_folder):
    clip = Clip(clip_folder)
    both = clip.texts(["a mug", "a photo of a very large red chair on a beach"])
    torch.testing.assert_close(both[:1], clip.texts(["a mug"]), atol=1e-5, rtol=1e-5)


def test_the_bundled_clip_tells_a_mug_from_a_dog():
    from escdiff.mini.world.rendering.render import render
    from escdiff.mini.world.world import Factors, Material, Scene, Shape

    material = Material("red", "white", "striped", 0.5, 0.0, "glossy", 0.5, (0.0,) * 3, (0.0,) * 3, 1)
    shown = [Factors(Shape(f, (0.5,) * 4), material, Scene("navy", 0, 0, 0, 0.3, 1, 0, 0)) for f in ("mug", "dog")]
    clip = load_clip("mini")
    seen = clip.pictures([Image.fromarray(p) for p in render(shown, 128).image])
    near = torch.cosine_similarity(seen[:, None], clip.texts(["a photo of a mug", "a photo of a dog"])[None], dim=-1)
    assert near[0, 0] > near[0, 1] and near[1, 1] > near[1, 0]


def test_models_are_frozen_and_names_that_lead_nowhere_are_said(clip_folder, tmp_path):
    from transformers import AutoModel, CLIPModel

    model = read_model(CLIPModel, clip_folder, torch.bfloat16)
    assert model.dtype == torch.bfloat16 and not model.training
    assert not any(p.requires_grad for p in model.parameters())
    for name in (tmp_path, "/nowhere/clip"):
        with pytest.raises(UserError, match=f"the model {name} cannot be loaded .* give a folder or hub id"):
            read(AutoModel, name)
    (tmp_path / "config.json").write_text('{"model_type": "dreams"}', encoding="utf-8")
    with pytest.raises(UserError, match="cannot be loaded"):
        ClassToken(tmp_path).pictures([Image.new("RGB", (8, 8))])


def test_the_common_frame_has_the_centroid_in_its_middle_and_one_area():
    mask = np.zeros((90, 70), bool)
    mask[5:45, 10:30] = True  # twice as high as wide, off the middle
    aligned = align(mask)
    rows, columns = np.nonzero(aligned)
    assert aligned.shape == (FRAME, FRAME)
    assert rows.mean() == pytest.approx((FRAME - 1) / 2, abs=0.6)
    assert columns.mean() == pytest.approx((FRAME - 1) / 2, abs=0.6)
    assert aligned.sum() == pytest.approx(ROOT_AREA**2, rel=0.08)
    assert np.ptp(rows) == pytest.approx(2 * np.ptp(columns), abs=3)
    assert not align(np.zeros((8, 8), bool)).any()


def test_a_mask_too_thin_to_survive_is_still_counted():
    """A line of one pixel in a picture of 1000, which is counted at 128."""
    pixels = np.zeros((1000, 1000, 3), np.uint8)
    pixels[500] = (255, 0, 0)
    line = np.zeros((1000, 1000), bool)
    line[501] = line[500] = False
    line[500, ::9] = True
    picture, red = Image.fromarray(pixels), Image.new("RGB", (32, 32), (255, 0, 0))
    assert lab_distance(picture, line, red, np.ones((32, 32), bool)) == pytest.approx(0, abs=1e-6)


def test_colours_are_moved_the_shortest_way():
    """Half black half white against half white half black: nothing has to move; against grey, all of it."""
    whole = np.ones((32, 32), bool)
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:, 16:] = 255
    one, other = Image.fromarray(pixels), Image.fromarray(pixels[:, ::-1].copy())
    assert lab_distance(one, whole, other, whole) == pytest.approx(0, abs=1e-9)
    black = Image.new("RGB", (32, 32))
    assert lab_distance(one, whole, black, whole) == pytest.approx(50, abs=0.1)  # half of it by 100 of L


def test_the_object_is_what_differs_from_the_rim_whatever_is_lighter():
    for ground, thing in (((250, 250, 250), (20, 20, 20)), ((10, 10, 40), (240, 230, 0))):
        picture = Image.new("RGB", (60, 40), ground)
        picture.paste(thing, (20, 10, 40, 30))
        expected = np.zeros((40, 60), bool)
        expected[10:30, 20:40] = True
        assert (plain_mask(picture) == expected).all()


def test_a_metrics_mean_is_over_pictures_not_over_updates():
    class Given(PictureMetric):
        against, unit = "text", "share"

        def score(self, values):
            return torch.tensor(values, requires_grad=True)

    metric = Given()
    metric.update([1.0, 1.0, 1.0])
    metric.update([0.0])
    assert metric.compute().item() == 0.75 and not metric.values[0].requires_grad
    metric.reset()
    metric.update([0.5])
    assert metric.compute().item() == 0.5
