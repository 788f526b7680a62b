from collections import defaultdict

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from trouble import encoded

from data_prep.dataset import Run
from data_prep.ingest import Ingest, ingest
from data_prep.likeness import colour_change, colour_distance, outline_overlap, same_arrangement
from data_prep.pairs import Pairs, pairs
from data_prep.plans import make_plan
from escdiff.data import schema, views
from escdiff.data.photos import PhotoDataModule
from escdiff.data.pictures import to_pixels
from escdiff.support.errors import UserError
from escdiff.support.jobs.engine import Engine

SMALL = Pairs(size=48)


def thing(colour, outline="ellipse", seed=0, mask=False) -> Image.Image:
    """A speckled object on grey, or its mask."""
    image = Image.new("RGB", (64, 64), (0, 0, 0) if mask else (128, 128, 128))
    getattr(ImageDraw.Draw(image), outline)((10, 14, 50, 44), fill=(255, 255, 255) if mask else colour)
    if mask:
        return image
    noise = np.random.default_rng(seed).normal(0, 20, (64, 64, 1))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def objects(tmp_path_factory, here):
    """Folders named after objects; `vase` has three pictures of one outline, one of them in another colour."""
    root = tmp_path_factory.mktemp("objects")
    rows = [
        ("vase/a", (200, 40, 40), "ellipse"), ("vase/b", (205, 45, 40), "ellipse"),
        ("vase/c", (40, 60, 200), "ellipse"),
        ("box/a", (60, 180, 70), "rectangle"), ("grey/a", (120, 120, 120), "ellipse"),
    ]  # fmt: skip
    for number, (name, colour, outline) in enumerate(rows):
        path = root / "in" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(thing(colour, outline, number), "PNG"))
        path.with_suffix(".mask.png").write_bytes(encoded(thing(colour, outline, mask=True), "PNG"))
    ingest(make_plan(root / "in", 100, "object"), root / "set", Ingest(), here)
    return root / "set"


def test_others_of_an_object_are_listed_where_the_attribute_agrees(objects, tmp_path, here, samples_of):
    pairs(objects, tmp_path, SMALL, here)
    by_name = {s["json"]["source"]: s for s in samples_of(tmp_path)}
    keys = {name: sample["__key__"] for name, sample in by_name.items()}
    vases = {name: keys[f"vase/{name}.png"] for name in "abc"}
    for name, others, alike in (("a", "bc", "b"), ("b", "ac", "a"), ("c", "ab", "")):
        meta = by_name[f"vase/{name}.png"]["json"]
        assert meta["same_shape"] == sorted(vases[other] for other in others)
        assert meta["same_appearance"] == [vases[other] for other in alike]
        assert all(scores["overlap"] > 0.6 for scores in meta["references"]["shape"].values())
    assert not {"same_shape", "same_appearance"} & set(by_name["box/a.png"]["json"])
    assert by_name["box/a.png"]["json"]["references"]["shape"]["change"] >= 12


def test_references_are_left_to_training(objects, tmp_path, here, samples_of):
    """They were drawn once and kept: one shape and one appearance per picture for the whole run."""
    pairs(objects, tmp_path / "pairs", SMALL, here)
    assert not any(
        {schema.SHAPE_VIEW, schema.APPEARANCE_VIEW} & set(sample) for sample in samples_of(tmp_path / "pairs")
    )
    options = {"batch_size": 1, "size": 48, "val_fraction": 0.0, "one_reference": 0.0}
    seen = defaultdict(set)
    names = {s["__key__"]: s["json"]["source"] for s in samples_of(tmp_path / "pairs")}
    for epoch in range(4):
        data = PhotoDataModule(tmp_path / "pairs", **options)
        data.set_epoch(epoch)
        for batch in data.train_dataloader():
            seen[names[batch["key"][0]].split("/")[0]].add(float(batch["shape_ref"].mean()))
    assert len(seen["vase"]) == 12 and len(seen["box"]) == 4


def test_what_has_no_good_view_is_left_out_with_its_measures(objects, tmp_path, here, samples_of, rejects_of):
    pairs(objects, tmp_path, Pairs(size=48, min_change=200, tries=2), here)
    assert {s["json"]["source"] for s in samples_of(tmp_path)} == {"vase/a.png", "vase/b.png", "vase/c.png"}
    assert all("no good shape view in 2 tries (change" in line["reason"] for line in rejects_of(tmp_path))


def test_same_seed_same_bytes(objects, tmp_path, here, contents_of):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        pairs(objects, tmp_path / name, Pairs(size=48, seed=seed), here)
    first, second, third = (contents_of(tmp_path / name) for name in "abc")
    assert first == second and first != third


def test_bad_options_are_refused(objects, tmp_path):
    for stage in (Pairs(size=4), Pairs(tries=0), Pairs(min_overlap=2)):
        with pytest.raises(UserError, match="--"):
            pairs(objects, tmp_path, stage, Run(Engine(workers=1)))


def test_measures():
    red, mask = (to_pixels(thing((200, 40, 40), mask=m)) for m in (False, True))
    mask = (mask[:1] > 0).float()
    blue = to_pixels(thing((40, 60, 200)))
    assert outline_overlap(mask, mask) == 1 and outline_overlap(mask, torch.zeros_like(mask)) == 0
    assert outline_overlap(mask, mask.roll(8, 2)) > 0.95  # where it lies does not matter
    ramp = torch.tril(torch.ones(1, 40, 40))
    assert outline_overlap(ramp, ramp.flip(-1)) > 0.95 and outline_overlap(ramp, ramp.flip(-1).flip(-2)) < 0.6
    assert colour_change(red, red, mask) == 0 and colour_change(red, blue, mask) > 30
    assert colour_distance(red, blue, mask, mask) > 30
    shuffled = views.patch_shuffle(red, np.random.default_rng(0), mask)
    assert colour_distance(red, shuffled, mask) < 10
    assert same_arrangement(red, red) == pytest.approx(1) and same_arrangement(red, torch.zeros_like(red)) < 1e-3
