"""Frozen transformers in 8 and 4 bits. bitsandbytes rounds on a GPU alone: the last test is for machines with one."""

import sys

import pytest
import torch
from tiny import make_backbone
from transformer_pipelines import PIPELINES

from escdiff.backbone import load_backbone
from escdiff.backbone.quantized import quantization
from escdiff.methods.xti import XTI
from escdiff.support.errors import UserError

PARTS = {"_class_name": "FluxPipeline", "text_encoder": ["transformers", "CLIPTextModel"],
         "text_encoder_2": ["transformers", "T5EncoderModel"], "transformer": ["diffusers", "FluxTransformer2DModel"],
         "text_encoder_3": [None, None]}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    PIPELINES["sana"]().save_pretrained(tmp_path / "sana")
    return tmp_path / "sana"


def test_without_the_library_one_sentence(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"backbone.quantize=4bit needs .* bitsandbytes.*pip install 'escdiff\[8bit\]'"):
        load_backbone(folder, quantize="4bit")


@pytest.mark.parametrize(("option", "named"), [({"quantize": "8bit"}, "8bit"), ({"offload_text": True}, "true")])
def test_a_unet_takes_none_of_it(tmp_path, option, named):
    make_backbone().pipeline().save_pretrained(tmp_path / "sd")
    with pytest.raises(UserError, match=f"{named} given for the backbone .* a U-Net; only transformers take it"):
        load_backbone(tmp_path / "sd", **option)


def test_without_a_gpu_one_sentence(monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    with pytest.raises(UserError, match="quantize=8bit given without a GPU"):
        quantization("8bit", PARTS, torch.bfloat16)


def test_large_parts_are_rounded_and_clip_is_not(monkeypatch):
    pytest.importorskip("bitsandbytes")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    found = quantization("4bit", PARTS, torch.bfloat16).quant_mapping
    assert set(found) == {"transformer", "text_encoder_2"} and found["transformer"].load_in_4bit
    assert found["transformer"].bnb_4bit_compute_dtype == torch.bfloat16
    assert set(quantization("8bit", PARTS, torch.bfloat16, texts=False).quant_mapping) == {"transformer"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="bitsandbytes rounds on a GPU")
@pytest.mark.parametrize("kind", ["8bit", "4bit"])
def test_vectors_learn_through_rounded_weights(folder, kind):
    pytest.importorskip("bitsandbytes")
    backbone = load_backbone(folder, torch.bfloat16, "cuda", quantize=kind)
    names = {type(module).__name__ for module in backbone.denoiser.modules()}
    assert names & {"Linear8bitLt", "Linear4bit"}
    backbone.prompts.given["max_sequence_length"] = 24
    method = XTI(backbone, init="mug").to("cuda")
    with torch.no_grad():
        method.table += torch.randn_like(method.table)
    feed = backbone.feed(method.space, method.words, {"concept": method.anchor("concept")})
    vectors = {f"<{a}>": value for a, value in method.vectors({}).items()}
    text = feed.load(["a <concept>"], vectors, torch.zeros(1, dtype=torch.long))
    noisy = torch.randn(1, backbone.denoiser.config.in_channels, 8, 8)
    backbone.predict(noisy, torch.tensor([500]), text).float().square().sum().backward()
    feed.remove()
    assert (method.table.grad.flatten(1).norm(dim=1) > 0).all()
