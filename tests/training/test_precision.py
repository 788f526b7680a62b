"""Whatever is trained is float32, on a backbone of any type: at a small rate half precision rounds every step away."""

from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from objectives import make_batch, make_vision
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from escdiff.backbone import load_backbone, pick_dtype
from escdiff.encoder import ConceptEncoder
from escdiff.support.config.backbone import BackboneConfig
from escdiff.support.config.data import DataConfig
from escdiff.support.config.encoder import EncoderConfig
from escdiff.support.config.loss import LossConfig
from escdiff.support.config.train import TrainConfig
from escdiff.support.config.trainer import OptimConfig, TrainerConfig
from escdiff.training.encoder.frozen import cast
from escdiff.training.encoder.module import EncoderModule
from escdiff.training.loop.optim.ema import Average, trainable
from escdiff.training.method import setup as method_setup

LR, STEPS = 1e-4, 100
METHODS = {
    "ti.TI": {}, "neti.NeTI": {}, "matte.MATTE": {}, "prospect.ProSpect": {},
    "dreambooth.DreamBooth": {"prior_weight": 0.0}, "custom_diffusion.CustomDiffusion": {"prior_weight": 0.0},
    "ip_adapter.IPAdapter": {"image_encoder": "tower"}, "elite.ELITE": {"vision": "tower"},
    "e4t.E4T": {"vision": "tower"}, "reversion.ReVersion": {},
    "break_a_scene.BreakAScene": {"init": ["mug"], "prior_weight": 0.0},
}  # fmt: skip


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tower")
    torch.manual_seed(0)
    settings = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    config = CLIPVisionConfig(**settings, image_size=32, patch_size=8, projection_dim=12)
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return str(folder)


def make_encoder_module(dtype, tiny_folder, branches):
    backbone = load_backbone(str(tiny_folder))
    config = EncoderConfig(features=24, rank=4, branch_rank=4, branches=branches)
    encoder = ConceptEncoder.for_backbone(config, make_vision(), backbone, backbone.p_plus())
    cast(backbone, pick_dtype(dtype))
    return EncoderModule(encoder, backbone, LossConfig(draws=1, cells=0, words_only=0.0), LR, STEPS)


def make_method_module(dtype, tiny_folder, name, tower, folder, monkeypatch):
    Image.fromarray(np.full((40, 60, 3), 99, np.uint8)).save(folder / "a.png")
    Image.new("L", (60, 40), 255).save(folder / "a.mask.png")
    (folder / "a.txt").write_text("a mug <relation> a chair", encoding="utf-8")
    settings = {key: tower if value == "tower" else value for key, value in METHODS[name].items()}
    settings["_target_"] = f"escdiff.methods.{name}"
    monkeypatch.setattr(method_setup, "load_learned", lambda method, init: None)  # a method is taken as it is
    config = TrainConfig(
        method=settings, backbone=BackboneConfig(name=str(tiny_folder), dtype=dtype), run_dir=str(folder / "run"),
        data=DataConfig(references=str(folder), batch_size=2, size=None), loss=LossConfig(high_noise_bias=0.0),
        optim=OptimConfig(lr=LR, warmup=0, weight_decay=0.0),
        trainer=TrainerConfig(max_steps=STEPS, accelerator="cpu"),
    )  # fmt: skip
    before = deepcopy(config)
    training = method_setup.build(config)
    assert config == before
    assert training.max_steps == (training.module.method.tuning_steps if training.module.method.encodes else STEPS)
    return training.module, training.data.batch(0)


def motion(module):
    """How far 100 equal steps of AdamW move each trained weight, and its average, on the mean."""
    parameters = trainable(module)
    average = Average(0.5)
    average.setup(None, module, "fit")
    before = [p.detach().double().clone() for p in parameters]
    optimizer = torch.optim.AdamW(parameters, LR, weight_decay=0.0)
    for _ in range(STEPS):
        for p in parameters:
            p.grad = torch.ones_like(p)
        optimizer.step()
        average.model.step(parameters)
    moved = [(b - p.detach().double()).mean().item() for b, p in zip(before, parameters, strict=True)]
    with average.applied(module):
        return moved, [(b - p.detach().double()).mean().item() for b, p in zip(before, parameters, strict=True)]


def check(module, batch):
    """It computes, its gradients are float32, and it moves as far as 100 steps should."""
    module.on_fit_start()
    module.training_step(batch, 0)["loss"].backward()
    module.on_fit_end()
    graded = [p for p in trainable(module) if p.grad is not None]
    assert graded and {p.grad.dtype for p in graded} == {torch.float32}
    assert {p.dtype for p in module.backbone.text_encoder.parameters()} == {module.backbone.dtype}
    for moved in motion(module):
        assert min(moved) == pytest.approx(LR * STEPS, rel=0.05) == pytest.approx(max(moved), rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("branches", ["lora", "routed"])
def test_the_encoder_and_its_branches_move_alike(dtype, branches, tiny_folder, monkeypatch):
    monkeypatch.setattr(EncoderModule, "global_step", 1)
    module = make_encoder_module(dtype, tiny_folder, branches)
    module.trainer = SimpleNamespace(global_step=1, log_every_n_steps=100)
    assert str(module.backbone.dtype).endswith(dtype) and len(module.branches)
    check(module, make_batch())


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_methods_move_alike_on_half_precision(name, tiny_folder, tower, tmp_path, monkeypatch):
    module, batch = make_method_module("bfloat16", tiny_folder, name, tower, tmp_path, monkeypatch)
    assert module.backbone.dtype == torch.bfloat16
    check(module, batch)
