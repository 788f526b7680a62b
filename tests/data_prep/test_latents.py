import shutil

import pytest
import torch

from data_prep.dataset import Run
from data_prep.latents import Latents, latents
from escdiff.backbone import load_backbone
from escdiff.data.latent_cache import load_latents, vae_key
from escdiff.data.pictures import to_pixels
from escdiff.support.errors import UserError


@pytest.fixture
def folder(photos, tmp_path):
    shutil.copytree(photos, tmp_path / "set")
    return tmp_path / "set"


def test_moments_are_those_of_the_pictures(folder, tiny_folder, here, samples_of):
    backbone = load_backbone(str(tiny_folder))
    key = latents(folder, Latents(str(tiny_folder), 64, batch=3), here)
    assert key == vae_key(backbone.vae, 64) and "-float32-64" in key
    found = load_latents(folder, key)
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
    keys = {latents(folder, Latents(str(tiny_folder), *more), here) for more in ((64,), (32,), (64, "bfloat16"))}
    assert len(keys) == 3


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


def test_nothing_but_the_vae_is_read(folder, tiny_folder, here, tmp_path, monkeypatch):
    """The U-Net's and the text encoder's weights may be missing; their configurations say what it is."""
    alone = shutil.copytree(tiny_folder, tmp_path / "alone")
    for part in ("unet", "text_encoder"):
        for file in (alone / part).glob("*.safetensors"):
            file.unlink()
    key = latents(folder, Latents(str(alone), 64), here)
    assert key == vae_key(load_backbone(str(tiny_folder)).vae, 64)
    assert load_latents(folder, key).shape == (14, 16, 8, 8)


def test_a_single_file_gives_the_same_key(tmp_path, tiny_backbone, tiny_folder):
    from ldm_layout import save_single_file

    from escdiff.backbone.vae import load_vae_encoder

    save_single_file(tiny_backbone, tmp_path / "tiny.safetensors")
    vae = load_vae_encoder(tmp_path / "tiny.safetensors", config=tiny_folder)
    assert vae_key(vae, 64) == vae_key(tiny_backbone.vae, 64)


def test_devices_are_given_out_by_place(monkeypatch):
    from data_prep import models
    from escdiff.support.jobs import processes

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    places = []
    for place in range(3):
        monkeypatch.setattr(processes, "_place", place)
        places.append(models.device_here("auto"))
    assert places == ["cuda:0", "cuda:1", "cuda:0"] and models.device_here("cuda:1") == "cuda:1"
    assert [models.workers_for(device) for device in ("auto", "cpu", "cuda:1")] == [2, 0, 1]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert models.device_here("auto") == "cpu" and models.workers_for("auto") == 0
    for absent in ("cuda", "cuda:0", "cpu:3", "tpu"):
        with pytest.raises(UserError, match=f"--device is {absent}"):
            models.device_here(absent)


@pytest.mark.slow
def test_workers_have_places_of_their_own():
    from escdiff.support.jobs.engine import Engine

    assert {found for _, found in Engine(workers=2).run(where, range(12))} <= {0, 1}


def where(_job: int) -> int:
    from escdiff.support.jobs.processes import place

    return place()
