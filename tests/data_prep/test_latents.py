import shutil

import pytest
import torch

from data_prep.dataset import Run
from data_prep.latents import Latents, latents
from escdiff.backbone import load_backbone
from escdiff.data.images import to_pixels
from escdiff.data.latents import load_latents, vae_key
from escdiff.errors import UserError


@pytest.fixture
def folder(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "set")
    return tmp_path / "set"


def test_moments_are_those_of_the_pictures(folder, tiny_folder, here, samples_of):
    backbone = load_backbone(str(tiny_folder))
    keys = latents(folder, Latents(str(tiny_folder), 64, batch=3), here)
    assert keys == {"moments": vae_key(backbone.vae, 64)} and "-float32-64" in keys["moments"]
    found = load_latents(folder, keys["moments"])
    pictures = [next(s[k] for k in ("png", "jpg") if k in s) for s in samples_of(folder)]
    wanted = backbone.moments(torch.stack([to_pixels(p, 64) for p in pictures]))
    assert found.shape == (14, 16, 8, 8) and torch.allclose(found.float(), wanted, atol=5e-3)


def test_only_what_is_missing_is_encoded_again(folder, tiny_folder, here, contents_of):
    options = Latents(str(tiny_folder), 64)
    latents(folder, options, Run(dry=True))
    assert not (folder / "latents").exists()
    latents(folder, options, here)
    made = contents_of(folder)
    files = sorted((folder / "latents").rglob("*.safetensors"))
    assert len(files) == 4
    files[1].unlink()
    files[2].write_bytes(b"damaged")
    before = files[0].stat().st_mtime_ns
    latents(folder, options, here)
    assert contents_of(folder) == made and files[0].stat().st_mtime_ns == before


def test_size_and_dtype_have_caches_of_their_own(folder, tiny_folder, here):
    keys = {
        latents(folder, Latents(str(tiny_folder), *more), here)["moments"] for more in ((64,), (32,), (64, "bfloat16"))
    }
    assert len(keys) == 3


def test_clip_tokens(folder, tiny_folder, tiny_clip, here):
    import safetensors.torch

    keys = latents(folder, Latents(str(tiny_folder), 64, clip=tiny_clip), here)
    files = sorted((folder / "clip" / keys["tokens"]).iterdir())
    tokens = safetensors.torch.load_file(files[0])["tokens"]
    assert len(files) == 4 and tokens.shape == (4, 16, 16) and tokens.std() > 0


def test_damaged_shards_and_bad_options_are_refused(folder, tiny_folder, here):
    for options, words in ((Latents(size=20), "--size"), (Latents(dtype="int8"), "--dtype")):
        with pytest.raises(UserError, match=words):
            latents(folder, options, here)
    path = folder / "photos-000001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="000001.tar is damaged"):
        latents(folder, Latents(str(tiny_folder), 64), here)
