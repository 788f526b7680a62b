"""Backbone families: what a layer is, how text reaches it and what is learned, for each kind of model."""

from escdiff.backbone.family.base import Family
from escdiff.backbone.family.blocks import Blocks
from escdiff.backbone.family.latents import Latents
from escdiff.backbone.family.noise import Diffusion, FlowMatching, Noise
from escdiff.backbone.family.registry import FAMILIES, denoiser_of, family_of, register
from escdiff.backbone.family.residuals import Residuals

__all__ = [
    "FAMILIES",
    "Blocks",
    "Diffusion",
    "Family",
    "FlowMatching",
    "Latents",
    "Noise",
    "Residuals",
    "denoiser_of",
    "family_of",
    "register",
]
