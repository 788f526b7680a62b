"""Compiling the parts of a U-Net that repeat, each by itself: minutes less than the whole, and hooks stay outside.

Regional compilation as in https://docs.pytorch.org/tutorials/recipes/regional_compilation.html. The regions are the
residual blocks and the feed-forward layers; attention runs in fused kernels already, and its cross-attention layers
have hooks that give each its own conditioning.
"""

import os
import shutil
from types import MethodType

import torch
from diffusers.models.attention import FeedForward
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from escdiff.support.errors import UserError

REGIONS = (ResnetBlock2D, FeedForward)
COMPILERS = ("g++", "clang++", "c++", "cl")


def compile_regions(unet: nn.Module, backend: str = "inductor") -> int:
    """Compile the regions of a U-Net for training; returns how many there are.

    Without gradients they run as they are: pictures painted in between come in other batches, and every size would
    be compiled anew.

    Raises:
        UserError: there is no C++ compiler, which torch's inductor needs.
    """
    found = [os.environ.get("CXX"), *map(shutil.which, COMPILERS)]
    if backend == "inductor" and not any(found):
        raise UserError("backbone.compile=true given without a C++ compiler; install g++, or leave it false")
    regions = [part for part in unet.modules() if type(part) in REGIONS]
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, 2 * len(regions))  # they share their classes' code
    forward = {kind: _in_training(kind.forward, backend) for kind in REGIONS}
    for region in regions:
        region.forward = MethodType(forward[type(region)], region)
    return len(regions)


def _in_training(eager, backend: str):
    compiled = torch.compile(eager, dynamic=False, backend=backend)

    def forward(region, *args, **kwargs):
        return (compiled if torch.is_grad_enabled() else eager)(region, *args, **kwargs)

    return forward
