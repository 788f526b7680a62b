"""`trainer=auto`: what is there is used, and said."""

import logging

import pytest
import torch

from escdiff.backbone import load_backbone
from escdiff.support.config.backbone import BackboneConfig
from escdiff.support.config.compose import compose
from escdiff.support.config.trainer import TrainerConfig
from escdiff.support.errors import UserError
from escdiff.training.encoder.frozen import make_backbone
from escdiff.training.loop.hardware import announce, choose, matmul_precision, own_device


@pytest.fixture
def gpus(monkeypatch):
    """A machine with two GPUs, as far as torch's questions go."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: "Card")


def config(*arguments):
    return compose("train", arguments)


def test_without_a_gpu_the_default_is_one_process_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose(config().trainer) == ("cpu", 1, "32-true")


def test_the_default_takes_all_gpus_for_data_and_one_for_references(gpus):
    assert choose(config().trainer) == ("gpu", "auto", "bf16-mixed")
    assert choose(config().trainer, few=True) == ("gpu", 1, "bf16-mixed")


def test_what_the_command_says_counts(gpus):
    assert choose(config("trainer=cpu").trainer) == ("cpu", 1, "32-true")
    assert choose(config("trainer.devices=1", "trainer.precision=32-true").trainer) == ("gpu", 1, "32-true")
    assert choose(config("trainer=ddp").trainer) == ("gpu", "auto", "bf16-mixed")


def test_an_older_gpu_computes_in_float32(gpus, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert choose(config().trainer).precision == "32-true"


def test_one_sentence_says_which(gpus, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    values = config("backbone=sd15", "data.shards=DIR")
    announce(choose(values.trainer), values.backbone.dtype)
    assert caplog.messages == ["training on all devices of Card in bf16-mixed, frozen weights in bfloat16"]
    caplog.clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    announce(choose(values.trainer), values.backbone.dtype)
    assert caplog.messages == [
        "training on the CPU in 32-true, since there is no CUDA device",
        "backbone.dtype=bfloat16 is slow on a CPU; say backbone.dtype=float32",
    ]


def test_the_precision_of_products_is_put_back(gpus):
    before = torch.get_float32_matmul_precision()
    for precision in ("high", "highest", "medium"):
        with matmul_precision(choose(config().trainer), precision):
            assert torch.get_float32_matmul_precision() == precision
        assert torch.get_float32_matmul_precision() == before


def test_the_unet_is_read_in_its_own_type_and_the_words_in_full(tiny_folder):
    backbone = make_backbone(BackboneConfig(name=str(tiny_folder), dtype="bfloat16"))
    assert (backbone.unet.dtype, backbone.vae.dtype, backbone.text_encoder.dtype) == (
        torch.bfloat16, torch.float32, torch.float32,
    )  # fmt: skip
    assert backbone.text_hash == load_backbone(str(tiny_folder)).text_hash


@pytest.mark.parametrize(
    ("accelerator", "devices", "rank", "expected"),
    [
        ("cpu", 1, None, "cpu"),
        ("gpu", 1, None, "cuda:0"),
        ("auto", "auto", "3", "cuda:3"),
        ("gpu", [2, 5], "1", "cuda:5"),
        ("gpu", "4,6", None, "cuda:4"),
    ],
)
def test_own_device(monkeypatch, accelerator, devices, rank, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("SLURM_LOCALID", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    settings = TrainerConfig(accelerator=accelerator, devices=devices)
    assert own_device(settings) == expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert own_device(settings) == "cpu"


def test_densities_that_are_none_are_refused():
    with pytest.raises(UserError, match="loss.high_noise_bias=-1.0 given; expected a number, -0.99 or more"):
        config("loss.high_noise_bias=-1")
    assert config("loss.high_noise_bias=-0.5").loss.high_noise_bias == -0.5
