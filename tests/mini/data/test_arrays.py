import pickle
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from escdiff.data.index import Index
from escdiff.data.latent_cache import encode_dataset, load_latents, vae_key
from escdiff.data.pictures import to_pixels
from escdiff.data.shards import read_shard
from escdiff.mini.data.arrays import LABELS, PLACES, UNNAMED, StillLifeArrays
from escdiff.mini.data.pairing import SwapPairs
from escdiff.mini.data.still_life import StillLifeOptions, make_still_life, shard_name
from escdiff.mini.world.world import THING
from escdiff.support.errors import UserError


@pytest.fixture(scope="module")
def arrays(still_life_folder):
    return StillLifeArrays(still_life_folder)


def test_rows_are_the_shards_samples_in_order(still_life_folder, arrays):
    assert len(arrays) == 160 and arrays.size == 32
    sample = list(read_shard(still_life_folder / shard_name(2)))[7]
    row = 2 * 32 + 7
    assert sample["__key__"] == f"{row:08d}"
    assert np.array_equal(arrays.images[row], np.asarray(sample["png"]))
    assert torch.equal(arrays.pixels([row])[0], to_pixels(sample["png"]))
    assert np.array_equal(arrays.masks([row])[0, 0].numpy(), np.asarray(sample["mask.png"]) / 255)
    assert arrays.meta(row) == sample["json"]
    assert arrays.factors[row].to_dict()["shape"]["family"] == sample["json"]["category"]
    assert arrays.captions[row] == arrays.caption(row) == sample["json"]["caption"]
    assert arrays.captions[0:2] == [arrays.captions[0], arrays.captions[1]]
    assert arrays.captions[-1] == arrays.captions[159]
    for name, (part, field, words) in LABELS.items():
        word = sample["json"]["factors"][part][field]
        assert arrays.labels[name][row] == (words.index(word) if word in words else UNNAMED)
    assert (arrays.group[row], arrays.shape_id[row], arrays.material_id[row]) == (4, 1, 3)


def test_cache_is_built_once_and_again_when_the_shards_change(still_life_folder, arrays, tmp_path):
    folder = shutil.copytree(still_life_folder, tmp_path / "copy")
    before = (folder / "arrays" / "images.npy").stat().st_mtime_ns
    StillLifeArrays(folder)
    assert (folder / "arrays" / "images.npy").stat().st_mtime_ns == before
    index = Index.load(folder)
    index.shards, index.planned = index.shards[:2], 2
    index.save(folder)
    assert len(StillLifeArrays(folder)) == 64
    assert not list(folder.glob(".*"))


def test_travels_to_workers_as_a_path(arrays):
    data = pickle.dumps(arrays)
    assert len(data) < 500
    assert np.array_equal(pickle.loads(data).images[3], arrays.images[3])


def test_missing_shards_and_other_data_are_refused(still_life_folder, tmp_path):
    folder = shutil.copytree(still_life_folder, tmp_path / "copy", ignore=shutil.ignore_patterns("arrays"))
    (folder / shard_name(1)).unlink()
    with pytest.raises(UserError, match=shard_name(1)):
        StillLifeArrays(folder)
    Index("photos", shards=[], planned=0).save(folder)
    with pytest.raises(UserError, match="photos"):
        StillLifeArrays(folder)
    with pytest.raises(UserError, match="no index"):
        StillLifeArrays(tmp_path / "absent")


def encode(pixels):
    return torch.nn.functional.avg_pool2d(pixels, 8).repeat(1, 2, 1, 1)


def test_latents_are_cached_per_shard_and_resumed(still_life_folder, arrays, tmp_path):
    folder = shutil.copytree(still_life_folder, tmp_path / "copy")
    seen = []

    def counted(pixels):
        seen.append(len(pixels))
        return encode(pixels)

    def stopped(pixels):
        if sum(seen) >= 64:
            raise KeyboardInterrupt
        return counted(pixels)

    with pytest.raises(KeyboardInterrupt):
        encode_dataset(folder, stopped, "k", batch_size=24)
    with pytest.raises(UserError, match="3 of 5 shards"):
        load_latents(folder, "k")
    encode_dataset(folder, counted, "k", batch_size=24)
    assert sum(seen) == 160
    latents = load_latents(folder, "k")
    assert latents.shape == (160, 6, 4, 4) and latents.dtype == torch.float16
    assert torch.allclose(latents.float(), encode(arrays.pixels(slice(None))), atol=2e-3)
    with pytest.raises(UserError, match="no latents of key other"):
        load_latents(folder, "other")
    (next((folder / "latents" / "k").iterdir())).write_bytes(b"damaged")
    encode_dataset(folder, counted, "k", batch_size=24)
    assert sum(seen) == 192


def test_other_sizes_are_decoded_and_values_that_are_not_finite_refused(still_life_folder, tmp_path):
    folder = shutil.copytree(still_life_folder, tmp_path / "copy")
    by_size = load_latents(folder, encode_dataset(folder, encode, "half", size=16).name)
    assert by_size.shape == (160, 6, 2, 2)
    with pytest.raises(UserError, match="not finite"):
        encode_dataset(folder, lambda pixels: encode(pixels) * float("nan"), "k")


def test_key_follows_the_encoder_and_the_size_only():
    def vae() -> nn.ModuleDict:
        torch.manual_seed(0)
        return nn.ModuleDict({"encoder": nn.Linear(2, 2), "decoder": nn.Linear(2, 2)})

    first, second, third = vae(), vae(), vae()
    nn.init.zeros_(second["decoder"].weight)
    nn.init.zeros_(third["encoder"].weight)
    assert vae_key(first, 128) == vae_key(second, 128) != vae_key(third, 128)
    assert vae_key(first, 128) != vae_key(first, 64)


def test_scenes_have_captions_and_no_place_among_swaps(tmp_path):
    options = StillLifeOptions(seed=3, size=32, shard_size=16, nameless=0.5, scenes=0.5)
    make_still_life(tmp_path, 96, options)
    arrays = StillLifeArrays(tmp_path)
    outside = np.setdiff1d(np.arange(len(arrays)), arrays.objects)
    assert 0 < len(outside) < len(arrays)
    assert (arrays.labels["family"][outside] == UNNAMED).all() and (arrays.labels["background"] >= 0).all()
    named = [arrays.factors[row].shape.family != THING for row in arrays.objects]
    assert ((arrays.labels["family"][arrays.objects] >= 0) == named).all() and not all(named)
    columns = {name: getattr(arrays, name) for name in PLACES} | arrays.labels
    assert np.isin(SwapPairs(columns, (), ()).targets, arrays.objects).all()
    text = arrays.caption(outside[0], np.random.default_rng(0))
    assert text == arrays.caption(outside[0], np.random.default_rng(0)) and len(text.split()) > 5
