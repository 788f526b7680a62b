"""What a batch of photographs holds: references that vary, masks, other photographs, buckets, held-out ones."""

import shutil
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from escdiff.data.index import Index
from escdiff.data.latent_cache import shard_file
from escdiff.data.photos import PhotoDataModule
from escdiff.data.photos.buckets import bucket_shapes, nearest
from escdiff.data.photos.objects import Objects, is_held_out, thing_of
from escdiff.data.photos.samples import PhotoSamples
from escdiff.data.photos.stream import Layout
from escdiff.data.resumable import Place
from escdiff.data.shards import encode_json, encode_png, read_raw, write_shard
from escdiff.data.workers import auto_workers, workers_needed
from escdiff.support.errors import UserError
from escdiff.support.files import save_tensors

SIDES = ((24, 24), (16, 32), (32, 16))


def row(number: int, size=(24, 24), colour=None, mask=True, **meta) -> dict:
    """A thing of one colour, or of a colour by its number, on grey, and its mask."""
    picture, plane = Image.new("RGB", size, (120, 120, 120)), Image.new("L", size)
    box = [size[0] // 4, size[1] // 4, size[0] * 3 // 4, size[1] * 3 // 4]
    ImageDraw.Draw(picture).rectangle(box, colour or (200, 40, number * 5 % 256))
    ImageDraw.Draw(plane).rectangle(box, 255)
    said = {"caption": f"a red mug on table {number}", "category": "mug", "source": "test", "licence": "CC0-1.0"}
    entries = {"png": encode_png(picture), "json": encode_json(said | meta)}
    return {"__key__": f"{number:04d}", **entries, **({"mask.png": encode_png(plane)} if mask else {})}


def write(folder, rows, per_shard=20) -> None:
    parts = [rows[i : i + per_shard] for i in range(0, len(rows), per_shard)]
    shards = [write_shard(folder / f"photos-{s}.tar", part) for s, part in enumerate(parts)]
    Index("photos", shards=shards, planned=len(shards)).save(folder)


def module(folder, **options) -> PhotoDataModule:
    return PhotoDataModule(folder, **{"batch_size": 4, "size": 32, "reference_size": 16, "buffer": 7, **options})


def by_key(data, epoch=0) -> dict[str, dict]:
    data.set_epoch(epoch)
    found = {}
    for batch in data.train_dataloader():
        for i, key in enumerate(batch["key"]):
            found[key] = {name: value[i] for name, value in batch.items() if name != "position"}
    return found


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    write(folder, [row(i) for i in range(40)])
    return folder


def test_references_are_drawn_anew_each_epoch_and_again_by_the_seed(photos):
    first, second = by_key(module(photos)), by_key(module(photos), 1)
    again = by_key(module(photos, buffer=3))  # what is drawn depends on seed, epoch and key, not on the order
    for key in first.keys() & second.keys():
        for name in ("shape_ref", "appearance_ref"):
            assert not torch.equal(first[key][name], second[key][name])
    same = first.keys() & again.keys()
    assert len(same) > 30
    for key in same:
        for name in ("shape_ref", "appearance_ref", "shape_mask"):
            assert torch.equal(first[key][name], again[key][name])
        assert first[key]["prompt"] == again[key]["prompt"]


def test_batches_have_the_towers_size_and_all_masks(photos, tmp_path):
    batch = next(iter(module(photos).train_dataloader()))
    assert batch["pixels"].shape == (4, 3, 32, 32) and batch["mask"].shape == (4, 1, 32, 32)
    assert 0.15 < batch["mask"].mean() < 0.4
    for attribute in ("shape", "appearance"):
        assert batch[f"{attribute}_ref"].shape == (4, 3, 16, 16) and batch[f"{attribute}_mask"].shape == (4, 1, 16, 16)
    whole = by_key(module(photos, one_reference=0.0))
    for item in whole.values():
        inside = item["shape_mask"][0] > 0
        assert 0.02 < inside.float().mean() < 0.6
        assert item["shape_ref"][:, inside].std(1).mean() < item["shape_ref"].flatten(1).std(1).mean()  # one thing
        assert (item["appearance_mask"] == 1).all()
    write(tmp_path, [row(i, mask=False) for i in range(8)])
    for item in by_key(module(tmp_path, val_fraction=0.0)).values():
        assert (item["shape_mask"] == 1).all() and (item["mask"] == 1).all()


def test_prompts_are_of_every_kind_and_shares_are_respected(photos):
    def kinds(epochs=1, **shares) -> Counter:
        items = [item for epoch in range(epochs) for item in by_key(module(photos, **shares), epoch).values()]
        uses = Counter((bool(i["uses_shape"]), bool(i["uses_appearance"])) for i in items)
        return Counter({kind: n / len(items) for kind, n in uses.items()})

    some = kinds(epochs=5)
    assert 0.05 < some[True, False] < 0.25 and 0.05 < some[False, True] < 0.25
    assert kinds(shape_only=0.0, appearance_only=0.0) == {(True, True): 1.0}
    assert kinds(one_reference=0.0, shape_only=1.0, appearance_only=0.0) == {(True, False): 1.0}
    prompts = {item["prompt"] for item in by_key(module(photos, drop_caption=0.0)).values()}
    assert all("on table" in prompt and "<" in prompt for prompt in prompts)
    with pytest.raises(UserError, match="sum to at most 1"):
        module(photos, shape_only=0.9, appearance_only=0.2)


def test_one_reference_is_the_photograph_itself_framed_anew(photos):
    for item in by_key(module(photos, one_reference=1.0, shape_only=0.0, appearance_only=0.0)).values():
        assert torch.equal(item["shape_ref"], item["appearance_ref"])
        red = item["shape_ref"][0] > item["shape_ref"][1] + 0.5
        assert (red == (item["shape_mask"][0] > 0)).float().mean() > 0.9


@pytest.mark.parametrize("name", ["object", "product"])
def test_references_are_other_photographs_of_the_object(tmp_path, name):
    """Pictures of an object differ in colour alone, so that each reference says which picture it is of."""
    colours = [(250, 10, 10), (10, 250, 10), (10, 10, 250)]
    rows = [row(i, colour=colours[i % 3], **{name: i // 3}) for i in range(12)]
    write(tmp_path, [*rows, *(row(i) for i in range(12, 24))], per_shard=12)
    data = module(tmp_path, val_fraction=0.0, one_reference=1.0, shape_only=0.0, appearance_only=0.0)
    seen = Counter()
    for epoch in range(6):
        for key, item in by_key(data, epoch).items():
            inside = item["shape_mask"][0] > 0
            channel = int(item["shape_ref"][:, inside].mean(1).argmax())
            if int(key) < 12:
                assert channel != int(key) % 3
                seen[key, channel] += 1
            else:
                assert channel == 0
    assert len(seen) == 24  # every picture was shown both others of its object


def test_a_photograph_that_both_references_show_is_decoded_once(tmp_path, monkeypatch):
    write(tmp_path, [row(i, object=i // 2) for i in range(8)])
    data, read, seen = module(tmp_path, val_fraction=0.0, one_reference=0.0), PhotoSamples.read, []
    monkeypatch.setattr(PhotoSamples, "read", lambda self, raw, *size: seen.append(raw) or read(self, raw, *size))
    assert len(by_key(data)) == 8 and len(seen) == 16  # the target and the other one


def test_a_group_gives_the_same_shape_in_other_colours(tmp_path):
    """The natural swap: the shape reference keeps its colours, the appearance reference is of the target."""
    colours = [(250, 10, 10), (10, 250, 10), (10, 10, 250)]
    write(tmp_path, [row(i, colour=colours[i % 3], group=f"{i // 3 * 3:04d}") for i in range(12)])
    for key, item in by_key(module(tmp_path, val_fraction=0.0, one_reference=0.0)).items():
        inside = item["shape_mask"][0] > 0
        red, green, blue = item["shape_ref"][:, inside].mean(1)
        colour = int(torch.stack([red, green, blue]).argmax())
        assert colour != int(key) % 3 and item["shape_ref"][colour][inside].median() > 0.8
        assert int(item["appearance_ref"].flatten(1).mean(1).argmax()) == int(key) % 3


def test_those_that_agree_are_listed_by_the_data(tmp_path):
    colours = [(250, 10, 10), (10, 250, 10), (10, 10, 250)]
    rows = [row(i, colour=colours[i], object="a", same_shape=[], same_appearance=["0002"]) for i in range(3)]
    write(tmp_path, rows)
    data = module(tmp_path, batch_size=3, val_fraction=0.0, one_reference=0.0)
    for epoch in range(5):
        for key, item in by_key(data, epoch).items():
            assert int(item["appearance_ref"].flatten(1).mean(1).argmax()) == 2, key


def held_keys(folder, fraction) -> set[str]:
    raws = [raw for path in sorted(folder.glob("*.tar")) for raw in read_raw(path)]
    return {raw["__key__"] for raw in raws if is_held_out(thing_of(raw), fraction)}


def test_held_out_photographs_are_never_trained_on(photos):
    held = held_keys(photos, 0.2)
    assert 2 <= len(held) <= 16
    data = module(photos, val_fraction=0.2)
    for epoch in range(3):
        data.set_epoch(epoch)
        seen = [key for batch in data.train_dataloader() for key in batch["key"]]
        assert len(seen) == 40 and held.isdisjoint(seen) and len(set(seen)) == 40 - len(held)
    found = [key for batch in data.val_dataloader() for key in batch["key"]]
    assert set(found) <= held and len(found) == len(held) // 4 * 4 if len(held) >= 4 else len(found) == len(held)


def test_no_reference_of_a_training_sample_is_held_out(tmp_path, monkeypatch):
    """Twelve shapes, each in the colours of two objects, one of which may be held out."""
    rows = [row(i, object=i // 2, group=i // 4) for i in range(48)]
    write(tmp_path, rows)
    held = held_keys(tmp_path, 0.4)
    groups = [{f"{i:04d}" for i in range(g, g + 4)} for g in range(0, 48, 4)]
    assert any(group & held and group - held for group in groups)
    other, used = Objects.other, set()

    def watched(self, shard, key, *rest):
        found = other(self, shard, key, *rest)
        used.add((key, found and found["__key__"]))
        return found

    monkeypatch.setattr(Objects, "other", watched)
    data = module(tmp_path, val_fraction=0.4, one_reference=0.0)
    for epoch in range(3):
        by_key(data, epoch)
    assert len(used) > 20 and not {key for pair in used for key in pair} & held


def test_the_choice_stays_when_the_data_grow_and_objects_are_held_out_whole(tmp_path):
    rows = [row(i, object=i // 3) for i in range(60)]
    write(tmp_path, rows)
    held = held_keys(tmp_path, 0.3)
    assert held and all({f"{int(k) // 3 * 3 + j:04d}" for j in range(3)} <= held for k in held)
    write(tmp_path, [*rows, *(row(i) for i in range(60, 80))])
    assert {key for key in held_keys(tmp_path, 0.3) if key < "0060"} == held
    assert len(held_keys(tmp_path, 0.1)) < len(held) and not held_keys(tmp_path, 0.0)


def test_validation_batches_are_like_training_batches_and_equal_at_every_visit(photos):
    data = module(photos, val_fraction=0.3)
    train = next(iter(data.train_dataloader()))
    one, two = (list(data.val_dataloader()) for _ in range(2))
    assert one and len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert set(a) == set(train) - {"position"}
        for name, value in a.items():
            assert torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name]
            if isinstance(value, torch.Tensor):
                assert value.shape == train[name].shape and value.dtype == train[name].dtype
    data.set_epoch(7)
    assert [batch["key"] for batch in data.val_dataloader()] == [batch["key"] for batch in one]
    assert module(photos, val_fraction=0.0).val_dataloader() == []


def test_ranks_share_the_held_out_photographs(photos):
    held = module(photos, val_fraction=0.3).held
    ranks = [[key for batch in held.batches(2, rank, 2) for key in batch["key"]] for rank in range(2)]
    assert len(ranks[0]) == len(ranks[1]) > 0 and set(ranks[0]).isdisjoint(ranks[1])
    assert len(held.batches(2, 0, 1000)) == 0


def test_swaps_take_shape_and_appearance_from_two_whole_photographs(photos):
    data = module(photos, val_fraction=0.3)
    batch = data.swaps(3)
    assert set(batch) == set(next(iter(data.train_dataloader()))) - {"position", "pixels", "mask"}
    assert batch["shape_ref"].shape == (3, 3, 16, 16)
    assert batch["uses_shape"].all() and batch["uses_appearance"].all() and len(set(batch["key"])) == 3
    held = held_keys(photos, 0.3)
    for i, key in enumerate(batch["key"]):
        shape, appearance = key.split(" in ")
        assert shape != appearance and {shape, appearance} <= held
        for name, of in (("shape", shape), ("appearance", appearance)):
            blue = (batch[f"{name}_ref"][i, 2, 8, 8] + 1) * 127.5
            assert abs(blue - int(of) * 5 % 256) < 3  # as it is: neither turned nor shuffled
    again = module(photos, val_fraction=0.3).swaps(3)
    assert torch.equal(again["shape_ref"], batch["shape_ref"]) and again["prompt"] == batch["prompt"]
    assert module(photos, val_fraction=0.0).swaps(3) is None


def test_when_all_are_held_out_the_way_out_is_told(tmp_path):
    write(tmp_path, [row(i, object="a") for i in range(8)])
    with pytest.raises(UserError, match="val_fraction"):
        list(module(tmp_path, val_fraction=0.9999).train_dataloader())


@pytest.mark.parametrize("size", [32, 128, 512, 768, 1024])
def test_buckets_have_the_area_of_the_square(size):
    shapes = bucket_shapes(size)
    assert (size, size) in shapes and len(shapes) == len(set(shapes)) >= 3
    step = min(64, size // 4)
    for height, width in shapes:
        assert height % step == width % step == 0 and max(height, width) <= 2 * min(height, width)
        assert 0.6 * size**2 < height * width <= size**2 and (width, height) in shapes
    assert shapes[nearest(shapes, 100, 100)] == (size, size)
    assert shapes[nearest(shapes, 900, 100)][1] > shapes[nearest(shapes, 100, 900)][1]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    write(folder, [row(i, size=SIDES[i % 3]) for i in range(48)])
    return folder


def global_batches(folder, world, start=0) -> list[list[tuple]]:
    """(keys, shape) of each global batch."""
    found = []
    for rank in range(world):
        data = module(folder, buckets=True, buffer=24, val_fraction=0.0, batch_size=4 // world)
        stream = data.stream()
        stream.rank, stream.world, stream.layout, stream.start = rank, world, Layout(2, 2), Place(0, start)
        stream.steps = 12
        found.append([(batch["key"], batch["pixels"].shape[2:]) for batch in stream])
    assert all(len({shape for _, shape in batch}) == 1 for batch in zip(*found, strict=True))
    return [sorted(key for keys, _ in batch for key in keys) for batch in zip(*found, strict=True)]


def test_batches_of_buckets_have_one_shape_for_all_ranks_and_cut_little(shapes):
    data = module(shapes, buckets=True, buffer=24, val_fraction=0.0)
    seen, fitting = [], 0
    for batch in data.train_dataloader():
        height, width = batch["pixels"].shape[2:]
        assert batch["mask"].shape[2:] == (height, width) and batch["shape_ref"].shape[2:] == (16, 16)
        for key in batch["key"]:
            seen.append(key)
            fitting += np.sign(height - width) == np.sign(SIDES[int(key) % 3][1] - SIDES[int(key) % 3][0])
    assert sorted(seen) == [f"{i:04d}" for i in range(48)] and fitting > 0.7 * 48
    alone = global_batches(shapes, 1)
    assert global_batches(shapes, 2) == alone
    assert global_batches(shapes, 2, start=5) == alone[5:]


def test_squares_stay_the_default_and_latents_are_of_squares(shapes):
    assert {batch["pixels"].shape[2:] for batch in module(shapes).train_dataloader()} == {(32, 32)}
    with pytest.raises(UserError, match="latents=null"):
        module(shapes, buckets=True, latents="key")


def test_workers_by_cores_and_by_the_accelerator():
    assert [auto_workers(ranks, 16) for ranks in (1, 4, 8, 16, 64)] == [15, 3, 1, 0, 0]
    assert workers_needed(0.015, 8, 0.18) == 1 and workers_needed(0.101, 8, 0.18) == 5


def test_auto_workers_leave_the_cores_to_a_model_that_trains_on_them(photos):
    data = module(photos, num_workers="auto")
    assert data.workers == 0 and data.layout == Layout(1, 1)
    assert len(list(data.train_dataloader())) == 10


def test_few_held_out_photographs_are_found_without_reading_all(photos, monkeypatch):
    data, read = module(photos, val_fraction=0.3), []
    shards = data.store.read
    monkeypatch.setattr(data.store, "read", lambda shard, first=0: read.append(shard.name) or shards(shard, first))
    data.swaps(2)
    assert set(read) == {"photos-0.tar"}
    data.val_dataloader()
    assert set(read) == {"photos-0.tar", "photos-1.tar"}


def test_a_run_keeps_the_index_that_it_began_with(tmp_path):
    """Checkpoints note the data that are read, whatever becomes of their source."""
    (tmp_path / "set").mkdir()
    write(tmp_path / "set", [row(i) for i in range(8)])
    data = module(f"file://{tmp_path}/set", cache=tmp_path / "cache", val_fraction=0.0)
    data.setup()
    noted = data.state_dict()
    write(tmp_path / "set", [row(i) for i in range(80)])
    assert data.state_dict() == noted and data.steps_per_epoch() == 2
    shutil.rmtree(tmp_path / "set")
    assert data.state_dict() == noted


def test_latents_of_shards_made_anew_are_fetched_again(tmp_path, caplog):
    """The data change and keep their size; what was fetched of them before is used no more."""
    folder, address = tmp_path / "set", f"file://{tmp_path}/set"
    folder.mkdir()

    def make(caption, value):
        write(folder, [row(i, caption=caption) for i in range(8)])
        (shard,) = Index.load(folder).shards
        moments = torch.full((8, 2, 1, 1), value)
        save_tensors(folder / shard_file("vae-float32-32", shard), {"moments": moments}, {"shard": shard.sha256})
        return shard

    def read():
        batch = next(iter(module(address, cache=tmp_path / "cache", latents="vae-float32-32", drop_caption=0.0,
                                 one_reference=0.0, val_fraction=0.0).train_dataloader()))  # fmt: skip
        return batch["prompt"], float(batch["latent"].mean())

    first = make("a red mug on a table", 1.0)
    assert read()[1] == 1
    second = make("a red mug on a chair", 2.0)
    assert first.bytes == second.bytes and first.sha256 != second.sha256
    prompts, value = read()
    assert value == 2 and any("chair" in p for p in prompts) and not any("table" in p for p in prompts)
    save_tensors(folder / shard_file("vae-float32-32", second), {"moments": torch.zeros(8, 2, 1, 1)}, {"shard": "?"})
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(UserError, match="no picture"):
        read()
    assert "made from another shard" in caplog.text
