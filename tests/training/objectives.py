"""What a training step should compute, in plain lines: no hooks, no shared calls, one sample after the other.

Noise is read off what the U-Net was really given, so the lines hold in whatever order a step draws its random numbers.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import tiny
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel

from escdiff.backbone import Backbone
from escdiff.conditioning import ConditioningSpace, bind
from escdiff.conditioning.grid import expand, pack_stages
from escdiff.encoder import ConceptEncoder
from escdiff.encoder.vision import TransformersVision
from escdiff.support.config.encoder import EncoderConfig
from escdiff.support.config.loss import LossConfig
from escdiff.training.encoder.module import MASKS, EncoderModule

DRAWS, CHANNELS = 2, tiny.LATENT_CHANNELS
TERMS = {"mask": 0.5, "invariance": 0.7, "independence": 3.0, "instances": 0.4}
TERMS |= {"words": 0.1, "gates": 0.3, "residual": 0.2}
INSTANCES = {"shape": [0, 1, 0], "appearance": [0, 1, 2]}
KEPT = {"drop_shape": 0.0, "drop_appearance": 0.0, "drop_text": 0.0, "drop_mask": 0.0}
CERTAIN = -30.0  # log-variance of latents that are their mean


@dataclass
class Seen:
    """What a U-Net was called with."""

    noisy: list[Tensor] = field(default_factory=list)
    timesteps: list[Tensor] = field(default_factory=list)


@contextmanager
def watched(unet) -> Iterator[Seen]:
    """Note the noisy latents and timesteps of every call within the block."""
    seen = Seen()

    def note(module, args):
        seen.noisy.append(args[0].detach().clone())
        seen.timesteps.append(args[1].detach().clone())

    handle = unet.register_forward_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def certain(latents: Tensor) -> Tensor:
    """Moments (B, 2C, h, w) whose only sample is `latents` (B, C, h, w)."""
    return torch.cat([latents, torch.full_like(latents, CERTAIN)], 1)


def errors(backbone: Backbone, space, grid_BLSTD: Tensor, latents: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
    """Squared error (B, C, h, w) of the frozen U-Net, as at inference: packed grid, bound U-Net.

    `noisy` is sqrt(a) latents + sqrt(1 - a) noise (DDPM, eq. 4), which says the noise; the target is that noise, or
    sqrt(a) noise - sqrt(1 - a) latents (v-prediction, arXiv 2202.00512).
    """
    a = backbone.noise.schedule.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noise = (noisy - a.sqrt() * latents) / (1 - a).sqrt()
    velocity = backbone.noise.schedule.config.prediction_type == "v_prediction"
    target = a.sqrt() * noise - (1 - a).sqrt() * latents if velocity else noise
    packed = pack_stages(expand(grid_BLSTD, space.num_layers, space.num_stages))
    with bind(backbone.unet, space):
        return (backbone.unet(noisy, timesteps, encoder_hidden_states=packed).sample - target).square()


def within(error: Tensor, mask: Tensor) -> Tensor:
    """Mean error within each sample's mask, then over samples."""
    share = F.adaptive_avg_pool2d(mask, error.shape[-2:])
    return ((error.mean(1, keepdim=True) * share).sum((1, 2, 3)) / share.sum((1, 2, 3))).mean()


def invariance(a: Tensor, b: Tensor) -> Tensor:
    """VICReg (arXiv 2105.04906), eqs. 1 and 5."""
    hinge = sum((1 - (x.var(0) + 1e-4).sqrt()).clamp(min=0).mean() for x in (a, b))
    return (a - b).square().mean() + hinge / 2


def independence(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared correlation of every feature of one head with every feature of the other."""
    a, b = ((x - x.mean(0)) / (x.var(0) + 1e-4).sqrt() for x in (a, b))
    return (torch.einsum("bi,bj->ij", a, b) / (len(a) - 1)).square().mean()


def instances(views: Tensor, others: Tensor, numbers: list[int]) -> Tensor:
    """Supervised contrast (arXiv 2004.11362, eq. 2), a picture at a time, at a temperature of 0.1."""
    vectors, numbers, total = torch.cat([views, others]), numbers * 2, 0.0
    for i, own in enumerate(vectors):
        shares = {j: torch.cosine_similarity(own, other, 0) / 0.1 for j, other in enumerate(vectors) if j != i}
        everything = torch.stack(list(shares.values())).logsumexp(0)
        total += torch.stack([everything - shares[j] for j in shares if numbers[j] == numbers[i]]).mean()
    return total / len(vectors)


def make_backbone(kind, tiny_backbone):
    parts = {name: copy.deepcopy(getattr(tiny_backbone, name)) for name in ("unet", "vae", "text_encoder")}
    for name, weight in parts["unet"].named_parameters():
        if "attn2.to_" in name:  # a random U-Net hardly listens to its conditioning
            weight.data *= 4
    return tiny.make_backbone(**parts, tokenizer=tiny_backbone.tokenizer, scheduler=tiny.make_scheduler(kind))


def make_vision() -> TransformersVision:
    torch.manual_seed(0)
    config = CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=4, num_attention_heads=2,
                              image_size=64, patch_size=16)  # fmt: skip
    return TransformersVision(CLIPVisionModel(config), "tiny").freeze()


def make_batch():
    """Three samples of everything, in the format of `EncoderDataModule`."""
    torch.manual_seed(1)
    pictures = {name: torch.rand(3, 3, 64, 64) * 2 - 1 for name in ("pixels", "shape_ref", "appearance_ref")}
    masks = {name: (torch.rand(3, 1, 4, 4) > 0.5).float() for name in MASKS}
    masks = {name: torch.nn.functional.interpolate(mask, size=64) for name, mask in masks.items()}
    prompts = ["a photo of a <appearance> <shape>", "one <shape> made of <appearance>, blurred", "a <shape>"]
    words = {"shape_words": ["mug", "", "cube"], "appearance_words": ["striped red", "blue", ""]}
    latent = certain(torch.randn(3, CHANNELS, 8, 8))
    words |= {f"{name}_instance": torch.tensor(numbers) for name, numbers in INSTANCES.items()}
    return {"prompt": prompts, "latent": latent, **pictures, **masks, **words}


def make_module(backbone, monkeypatch, step=6, stages=1, **objective):
    torch.manual_seed(2)
    config = EncoderConfig(features=24, rank=4, tokens={"shape": 1, "appearance": 2})
    space = ConditioningSpace.build(backbone.unet, stages=stages)
    encoder = ConceptEncoder.for_backbone(config, make_vision(), backbone, space)
    for null in encoder.nulls.values():  # which start as zeros
        torch.nn.init.normal_(null)
    for head in encoder.heads.values():  # whose answers are small at first
        torch.nn.init.normal_(head.base[-1].weight)
        if head.stage is not None:
            torch.nn.init.normal_(head.stage)
    settings = {"draws": DRAWS, "cells": 0, "words_only": 0.5, "pairs_every": 2, **TERMS, **KEPT, **objective}
    module = EncoderModule(encoder, backbone, LossConfig(**settings), 1e-3, 10)
    module.trainer = SimpleNamespace(global_step=step, log_every_n_steps=100)
    monkeypatch.setattr(EncoderModule, "global_step", step)
    return module
