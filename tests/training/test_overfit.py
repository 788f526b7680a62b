"""The loops learn: one batch that has a solution is learned nearly by heart.

Its pictures are what the frozen U-Net paints for a concept that is known here and that the training has to find.
"""

import objectives as plain
import pytest
import torch
from objectives import TERMS, make_backbone, make_batch, make_module

from escdiff.methods.xti import XTI
from escdiff.training.method.module import MethodModule

NOISY = 1000.0  # a bias to the timesteps with the most noise, so that the U-Net has to ask the concept


@pytest.fixture
def backbone(tiny_backbone):
    """Predicts the picture itself."""
    return make_backbone("sample", tiny_backbone)


@torch.no_grad()
def paint(module, batch):
    """Latents of `batch` that the module, as it is, predicts without error."""
    answers = []
    handle = module.backbone.unet.register_forward_hook(lambda _, __, out: answers.append(out.sample))
    for _ in range(4):  # at so much noise the U-Net's answer hardly depends on the picture
        loss(module, batch)
        batch = {**batch, "latent": plain.certain(answers[-1] / module.backbone.vae.config.scaling_factor)}
    handle.remove()
    return batch


def loss(module, batch):
    torch.manual_seed(0)  # the same noise at every step
    return module.training_step(batch, 0)["loss"]


def fit(module, batch, steps):
    """The first and the last loss."""
    optimizer = module.configure_optimizers()["optimizer"]
    values = []
    for _ in range(steps):
        value = loss(module, batch)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    return values[0], values[-1]


def test_a_method_learns_one_batch(backbone):
    teacher, student = (
        MethodModule(XTI(backbone, keep_norm=False), lr=0.02, max_steps=1, high_noise_bias=NOISY) for _ in range(2)
    )
    torch.nn.init.normal_(teacher.method.table, std=0.1)
    learns(teacher, student, {"latent": make_batch()["latent"], "prompt": ["a photo of a <concept>"] * 3}, 90)


@pytest.mark.slow
def test_the_encoder_learns_one_batch(backbone, monkeypatch):
    terms = dict.fromkeys(TERMS, 0.0)  # the denoising error alone
    options = {"draws": 1, "words_only": 0.0, "high_noise_bias": NOISY, **terms}
    teacher, student = (make_module(backbone, monkeypatch, step=7, **options) for _ in range(2))
    for parameter in (*teacher.encoder.heads.parameters(), *student.encoder.heads.parameters()):
        torch.nn.init.normal_(parameter, std=0.2)
    student.lr, student.warmup = 0.02, 0
    learns(teacher, student, make_batch(), 60)


def learns(teacher, student, batch, steps):
    teacher.on_fit_start()
    batch = paint(teacher, batch)
    floor = loss(teacher, batch).item()
    teacher.on_fit_end()
    student.on_fit_start()
    first, last = fit(student, batch, steps)
    student.on_fit_end()
    assert floor < 1e-3 * first
    assert last < 0.1 * first
