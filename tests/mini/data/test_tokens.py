"""The cache of a tower's tokens, and the batches made of it."""

import os
import shutil
from types import SimpleNamespace

import pytest
import torch

from escdiff.mini.data import token_cache as cached
from escdiff.mini.data.arrays import StillLifeArrays
from escdiff.mini.data.swaps import EncoderDataModule
from escdiff.mini.data.token_cache import StoredTokens, encode_tokens, own_framing, tokens_missing
from escdiff.support.errors import UserError


def encode(pixels):
    return torch.nn.functional.avg_pool2d(pixels, 8).flatten(1)


VALUES = 3 * 4 * 4


@pytest.fixture(scope="module")
def folder(still_life_folder, tmp_path_factory):
    folder = shutil.copytree(still_life_folder, tmp_path_factory.mktemp("tokens") / "world")
    encode_tokens(folder, encode, "k", VALUES, batch_size=24)
    return folder


def module(folder, **options) -> EncoderDataModule:
    return EncoderDataModule(folder, **{"batch_size": 8, "val_fraction": 0.2, "tokens": "k", **options})


def test_every_picture_is_kept_as_it_is_and_framed_anew(folder):
    arrays, stored = StillLifeArrays(folder), StoredTokens(folder, "k")
    rows = [0, 159, 31, 32, 100, 32]
    framed = [False, True, True, False, True, True]
    pixels = [own_framing(p, r) if f else p for p, r, f in zip(arrays.pixels(rows), rows, framed, strict=True)]
    found = stored(rows, framed)
    assert found.dtype == torch.float16 and found.shape == (6, VALUES)
    assert torch.allclose(found.float(), encode(torch.stack(pixels)), atol=2e-3)
    assert not torch.allclose(found[3], found[5], atol=0.1)  # one picture's two views


@pytest.mark.parametrize("reframed", [0.0, 1.0])
def test_batches_hold_tokens_in_place_of_references(folder, reframed):
    options = {"one_reference": 0, "reframed": reframed}
    given = next(iter(module(folder, **options).train_dataloader()))
    live = next(iter(module(folder, tokens=None, **options).train_dataloader()))
    assert "shape_ref" not in given and given["key"] == live["key"]
    arrays, rows = StillLifeArrays(folder), [int(key) for key in given["key"]]
    assert torch.allclose(given["target_tokens"].float(), encode(arrays.pixels(rows)), atol=2e-3)
    assert torch.equal(given["mask"], live["mask"])
    for attribute in ("shape", "appearance"):
        tokens, masks = given[f"{attribute}_tokens"], given[f"{attribute}_mask"]
        if not reframed:
            assert torch.allclose(tokens.float(), encode(live[f"{attribute}_ref"]), atol=2e-3)
            assert torch.equal(masks, live[f"{attribute}_mask"])
            continue
        everything = range(len(arrays))
        views = torch.stack([own_framing(p, row) for row, p in enumerate(arrays.pixels(everything))])
        for own, mask in zip(tokens, masks, strict=True):
            row = int((encode(views) - own.float()).abs().mean(1).argmin())
            assert torch.equal(mask, (own_framing(arrays.masks([row])[0] * 2 - 1, row) > 0).float())


def test_one_reference_is_the_targets_other_view(folder):
    batch = next(iter(module(folder, one_reference=1, shape_only=0, appearance_only=0).train_dataloader()))
    rows = [int(key) for key in batch["key"]]
    assert torch.equal(batch["shape_tokens"], batch["appearance_tokens"])
    assert torch.equal(batch["shape_tokens"], StoredTokens(folder, "k")(rows, [True] * len(rows)))


def test_workers_read_the_same(folder):
    alone, shared = (list(module(folder, num_workers=n).train_dataloader()) for n in (0, 2))
    for a, b in zip(alone, shared, strict=True):
        assert a["prompt"] == b["prompt"] and torch.equal(a["shape_tokens"], b["shape_tokens"])


def test_checkpoints_with_and_without_tokens_are_told_apart(folder, caplog):
    live = module(folder, tokens=None)
    live.load_state_dict(module(folder).state_dict())
    assert live.place == (1, 0) and "tokens was 'k', is None" in caplog.text


def test_a_file_cut_short_is_told(folder, tmp_path):
    folder = shutil.copytree(folder, tmp_path / "world")
    stored = StoredTokens(folder, "k")
    for path in (folder / "clip" / "k-plain").iterdir():
        os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(UserError, match=r"k-plain/.* ends too early"):
        stored([31], [False])


def test_a_stopped_encoding_goes_on(still_life_folder, tmp_path):
    folder = shutil.copytree(still_life_folder, tmp_path / "world")
    seen = []

    def stopping(pixels):
        if sum(seen) >= 200:  # within the second view
            raise KeyboardInterrupt
        seen.append(len(pixels))
        return encode(pixels)

    with pytest.raises(KeyboardInterrupt):
        encode_tokens(folder, stopping, "k", VALUES)
    assert tokens_missing(folder, "k")
    with pytest.raises(UserError, match="data.tokens=auto"):
        StoredTokens(folder, "k")
    whole = sum(seen) - sum(seen) % 32  # shards of 32 that were written
    encode_tokens(folder, lambda pixels: seen.append(len(pixels)) or encode(pixels), "k", VALUES)
    assert not tokens_missing(folder, "k") and sum(seen) - whole <= 320 + 32 - whole


def test_a_disk_without_room_is_told_before_the_work(still_life_folder, tmp_path, monkeypatch):
    folder = shutil.copytree(still_life_folder, tmp_path / "world")
    room = 2 * VALUES * 320 - 1
    monkeypatch.setattr(cached.shutil, "disk_usage", lambda _: SimpleNamespace(free=room))
    with pytest.raises(UserError, match="lacks room for"):
        encode_tokens(folder, encode, "k", VALUES)
    assert not (folder / "clip").exists()
