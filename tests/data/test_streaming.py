from collections import Counter
from dataclasses import replace

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d
from torch.utils.data import DataLoader

from escdiff.backbone import load_backbone
from escdiff.data.index import Index
from escdiff.data.latent_cache import encode_dataset, vae_key
from escdiff.data.photos import PhotoDataModule
from escdiff.data.photos.samples import PhotoSamples, Shares
from escdiff.data.photos.stream import Layout, PhotoStream
from escdiff.data.resumable import Place
from escdiff.data.shard_store import ShardStore
from escdiff.data.shards import encode_jpeg, encode_json, encode_png, read_raw, write_shard
from escdiff.support.config.data import DataConfig
from escdiff.support.errors import UserError
from escdiff.training.encoder.datasets import make_data

ONE = Layout(1, 1)
META = {"caption": "a vase", "category": "vase", "source": "test", "licence": "CC0-1.0"}


def write(folder, shards=4, samples=10, damaged=()) -> None:
    rng = np.random.default_rng(0)
    made = []
    for s in range(shards):
        rows = []
        for i in range(samples):
            picture = encode_png(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8))
            if (s, i) in damaged:
                picture = picture[:100]
            rows.append({"__key__": f"{s}{i:02d}", "png": picture, "json": encode_json(META), "note.txt": b"x"})
        made.append(write_shard(folder / f"photos-{s}.tar", rows))
    Index("photos", shards=made, planned=shards).save(folder)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    write(folder)
    return folder


def module(folder, **options) -> PhotoDataModule:
    return PhotoDataModule(folder, **{"batch_size": 4, "size": 16, "buffer": 7, "val_fraction": 0.0, **options})


def keys(batches) -> list[list[str]]:
    return [list(batch["key"]) for batch in batches]


def stream(folder, rank=0, world=1, layout=ONE, batch_size=4) -> PhotoStream:
    samples = PhotoSamples(ShardStore(folder), 16, 16, 0, Shares())
    return PhotoStream(samples, Index.load(folder), batch_size, rank, world, layout, 7)


def test_an_epoch_holds_every_sample_once_in_a_mixed_order(photos):
    data = module(photos)
    first = [key for batch in keys(data.train_dataloader()) for key in batch]
    assert len(first) == len(set(first)) == 40 and first != sorted(first)
    data.set_epoch(1)
    second = [key for batch in keys(data.train_dataloader()) for key in batch]
    assert sorted(second) == sorted(first) and second != first


def test_ranks_and_workers_read_different_samples(photos):
    ranks = [keys(stream(photos, rank, world=2, layout=Layout(2, 1))) for rank in range(2)]
    assert [len(rank) for rank in ranks] == [5, 5]
    assert {k for b in ranks[0] for k in b}.isdisjoint(k for b in ranks[1] for k in b)
    shared = keys(module(photos, num_workers=2).train_dataloader())
    assert len({key for batch in shared for key in batch}) == 40


def together(folder, world, workers, layout, start=0) -> list[list[tuple]]:
    """The samples of every global batch from `start` on as (key, first reference), by key."""
    ranks = []
    for rank in range(world):
        dataset = stream(folder, rank, world, layout, batch_size=8 // world)
        dataset.start = Place(1, start)
        ranks.append(list(DataLoader(dataset, batch_size=None, num_workers=workers)))
    return [
        sorted((key, float(view)) for batch in batches for key, view in zip(batch["key"], means(batch), strict=True))
        for batches in zip(*ranks, strict=True)
    ]


def means(batch) -> torch.Tensor:
    return batch["shape_ref"].flatten(1).mean(1)


@pytest.mark.parametrize("layout", [Layout(1, 1), Layout(2, 2), Layout(3, 2)])
def test_other_numbers_of_ranks_and_workers_keep_the_order_of_samples(photos, layout):
    alone = together(photos, 1, 0, layout)
    assert len(alone) == 5 and len({key for batch in alone for key, _ in batch}) == 40
    for world, workers in ((2, 0), (1, 2), (4, 3)):
        assert together(photos, world, workers, layout) == alone, (world, workers)
    assert together(photos, 2, 2, layout, start=3) == alone[3:]


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_training_sees_exactly_the_samples_it_would_have(photos, tmp_path, fit, workers):
    def data(workers=workers):
        return module(photos, num_workers=workers)

    assert data().steps_per_epoch() == 10
    whole = fit(data(), tmp_path, 23, every=1)
    assert len(whole.seen) == 23
    for at, others in ((3, workers), (10, workers), (15, 2 - workers)):
        rest = fit(data(others), tmp_path / str(at), 23, resume=next(tmp_path.glob(f"*step={at}.ckpt")))
        assert rest.seen == whole.seen[at:], at
        assert rest.weight.equal(whole.weight)


def test_a_checkpoint_keeps_its_streams(photos, caplog):
    first = module(photos, num_workers=2)
    state = first.state_dict()
    second = module(photos)
    second.load_state_dict(state)
    assert second.layout == first.layout == Layout(1, 2) != module(photos).layout
    assert second.state_dict()["layout"] == (1, 2)
    other = module(photos, batch_size=8)
    other.load_state_dict(state)
    assert other.layout == Layout(1, 1) and "global_batch was 4, is 8" in caplog.text


@pytest.mark.parametrize("layout", [Layout(3, 2), Layout(5, 4)])
def test_few_samples_for_many_streams_are_still_read_once(photos, layout):
    seen = [key for batch in keys(stream(photos, layout=layout, batch_size=3)) for key in batch]
    assert len(seen) == len(set(seen)) == 39


def test_too_few_samples_are_refused_and_shards_with_fewer_than_the_index_says(photos, tmp_path):
    with pytest.raises(UserError, match="smaller"):
        stream(photos, batch_size=41)
    write(tmp_path)
    index = Index.load(tmp_path)
    index.shards[2] = replace(index.shards[2], samples=11)
    index.save(tmp_path)
    with pytest.raises(UserError, match=r"photos-2.tar of .* holds 10 samples, the index says 11"):
        keys(stream(tmp_path, batch_size=41))


def test_no_sample_is_always_left_out(photos):
    """Of 40 samples in batches of 17 six are left out of every epoch."""
    data, missed = stream(photos, batch_size=17), []
    # Only the order counts here, so nothing is decoded.
    data._batch = lambda raws, *_: {"key": [raw["__key__"] for raw in raws.values()]}
    for epoch in range(40):
        data.start = Place(epoch, 0)
        seen = {key for batch in keys(data) for key in batch}
        assert len(seen) == 34
        missed += sorted({f"{s}{i:02d}" for s in range(4) for i in range(10)} - seen)
    counts = Counter(missed)
    assert len(counts) > 35 and max(counts.values()) < 0.6 * 40


def test_damaged_pictures_have_one_stand_in_whoever_reads_them(tmp_path):
    write(tmp_path, damaged={(1, 3), (2, 5)})
    alone = together(tmp_path, 1, 0, ONE)
    assert together(tmp_path, 8, 0, ONE) == together(tmp_path, 2, 2, ONE) == alone  # in batches of one, too
    counts = Counter(key for batch in alone for key, _ in batch)
    assert len(counts) == 38 and sorted(counts.values())[-2:] == [1, 3]


def test_what_reads_more_than_it_needs_is_told(photos, caplog):
    loader = module(photos)
    loader._layout = Layout(2, 4)
    loader.train_dataloader()
    assert "every worker reads 8 streams" in caplog.text and "4 shards for 8 streams" in caplog.text
    caplog.clear()
    few = module(photos, num_workers=3)
    few._layout = ONE
    few.train_dataloader()
    assert "began with 1 ranks x 1 workers and goes on with 1 x 3" in caplog.text
    caplog.clear()
    module(photos, num_workers=4).train_dataloader()
    assert not caplog.text


def test_damaged_pictures_are_left_out_and_named_up_to_a_limit(tmp_path, caplog):
    write(tmp_path, damaged={(1, 3), (2, 5)})
    seen = {key for batch in keys(module(tmp_path).train_dataloader()) for key in batch}
    assert len(seen) == 38 and "103 of" in caplog.text and "205 of" in caplog.text
    write(tmp_path, damaged={(1, i) for i in range(5)})
    with pytest.raises(UserError, match="cannot be read, more than 0.1%"):
        list(module(tmp_path).train_dataloader())


def test_missing_and_changed_shards_are_refused(tmp_path):
    write(tmp_path)
    path = tmp_path / "photos-2.tar"
    data = bytearray(path.read_bytes())
    data[600] ^= 1
    path.write_bytes(data)
    module(tmp_path).setup()
    with pytest.raises(UserError, match="photos-2.tar is damaged"):
        module(tmp_path, check_hashes=True).setup()
    path.unlink()
    with pytest.raises(UserError, match="photos-2.tar is missing"):
        module(tmp_path).setup()


def test_references_and_latents_of_the_data_are_used(tmp_path):
    write(tmp_path, shards=2, samples=6)
    red, blue = Image.new("RGB", (32, 32), (255, 0, 0)), Image.new("RGB", (32, 32), (0, 0, 255))
    rows = [
        {**raw, "shape.jpg": encode_jpeg(red), "appearance.jpg": encode_jpeg(blue)}
        for raw in read_raw(tmp_path / "photos-0.tar")
    ]
    made = write_shard(tmp_path / "photos-0.tar", [{k: v for k, v in r.items() if k != "__url__"} for r in rows])
    Index("photos", shards=[made, Index.load(tmp_path).shards[1]], planned=2).save(tmp_path)
    encode_dataset(tmp_path, lambda pixels: avg_pool2d(pixels, 8), "k", size=16)
    batches = list(module(tmp_path, latents="k", one_reference=0.0).train_dataloader())
    assert len(batches) == 3
    for batch in batches:
        assert torch.allclose(batch["latent"], avg_pool2d(batch["pixels"], 8), atol=2e-3)
        for key, shape, appearance in zip(batch["key"], batch["shape_ref"], batch["appearance_ref"], strict=True):
            given = key.startswith("0")
            assert (shape[0].min() > 0.9) == given and (appearance[2].min() > 0.9) == given
    write(tmp_path, shards=3, samples=6)
    with pytest.raises(UserError, match="python -m data_prep latents"):
        list(module(tmp_path, latents="k").train_dataloader())


def test_shards_without_samples_are_no_trap(tmp_path):
    write(tmp_path, shards=2)
    index = Index.load(tmp_path)
    index.shards.append(write_shard(tmp_path / "photos-2.tar", []))
    index.planned = 3
    index.save(tmp_path)
    assert len(keys(module(tmp_path).train_dataloader())) == 5
    assert len(keys(module(tmp_path, num_workers=3).train_dataloader())) == 5


@pytest.mark.parametrize("workers", [0, 2])
def test_an_address_gives_what_the_folder_gives(photos, tmp_path, workers):
    address = f"file://{photos}"
    local = keys(module(photos, num_workers=workers).train_dataloader())
    assert keys(module(address, num_workers=workers, cache=tmp_path).train_dataloader()) == local
    (cached,) = tmp_path.iterdir()
    assert len(list(cached.glob("*.tar"))) == 4


def test_latents_behind_an_address_are_used_where_all_are_there(photos, tiny_folder, tmp_path):
    memory = fsspec.filesystem("memory")
    memory.put(str(photos), "/told/photos", recursive=True)
    backbone = load_backbone(tiny_folder)
    settings = DataConfig(
        root="memory://told/photos", batch_size=4, size=64, cache=str(tmp_path), num_workers=0, val_fraction=0.0
    )
    assert "latent" not in next(iter(make_data(settings, 0, backbone).train_dataloader()))
    cache = encode_dataset(photos, backbone.moments, vae_key(backbone.vae, 64), size=64)
    memory.put(str(cache), f"/told/photos/latents/{cache.name}", recursive=True)
    batch = next(iter(make_data(settings, 0, backbone).train_dataloader()))
    assert batch["latent"].shape[1:] == (16, 8, 8)  # mean and log-variance
    settings.latents = None
    assert "latent" not in next(iter(make_data(settings, 0, backbone).train_dataloader()))
