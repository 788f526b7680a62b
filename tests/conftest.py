"""Session fixtures: the tiny real components of `tiny.py`. They are shared: deep-copy what you change."""

import gc
import os
import random

# Tests must pass offline, and must show it.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the networks are tiny, and tests run beside each other

import numpy as np
import pytest
import tiny
import torch

torch.set_num_threads(1)
gc.disable()  # while test modules and what they import are collected


def pytest_collection_finish():
    """Half a million objects of imported libraries are looked through no more: a model loads in 0.7 of the time."""
    gc.enable()
    gc.freeze()
    gc.set_threshold(5_000, 10, 10)


@pytest.fixture(autouse=True)
def seeded():
    """The same random numbers in whatever order and process a test runs."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_unet():
    return tiny.make_unet().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_text():
    return tiny.make_tokenizer(), tiny.make_text_encoder().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_vae():
    return tiny.make_vae().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_backbone(tiny_unet, tiny_text, tiny_vae):
    tokenizer, text_encoder = tiny_text
    return tiny.make_backbone(unet=tiny_unet, vae=tiny_vae, tokenizer=tokenizer, text_encoder=text_encoder)


@pytest.fixture(scope="session")
def tiny_folder(tiny_backbone, tmp_path_factory):
    """The tiny backbone as a diffusers folder, as `load_backbone` and `StableDiffusionPipeline` read it."""
    folder = tmp_path_factory.mktemp("tiny_backbone")
    tiny_backbone.pipeline().save_pretrained(folder, safe_serialization=True)
    return folder
