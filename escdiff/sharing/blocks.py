"""Layers by the names of the first Stable Diffusion, which A1111, kohya's scripts and ComfyUI still count by.

There the U-Net is a list of input blocks, a middle block and a list of output blocks. diffusers groups them by level:
two attentions and a downsampler make three input blocks, behind the first convolution; three attentions three output
blocks. That holds for Stable Diffusion 1.x, 2.x and XL.
"""

import re

from escdiff.support.errors import UserError

PER_LEVEL = 3  # blocks of one level
LAYER = re.compile(
    r"(down_blocks|mid_block|up_blocks)\.(?:(\d+)\.)?attentions\.(\d+)\.transformer_blocks\.(\d+)\.attn2"
)


def block_of(layer: str) -> tuple[str, int, int]:
    """A cross-attention layer of diffusers -> ("input", "middle" or "output", the block's number, the transformer's).

    Raises:
        UserError: no such layer.
    """
    match = LAYER.fullmatch(layer)
    if match is None:
        raise UserError(f"{layer!r} is no cross-attention of Stable Diffusion's U-Net; use a concept of that")
    part, level, attention, index = match.groups()
    number = PER_LEVEL * int(level or 0) + int(attention)
    return {
        "down_blocks": ("input", number + 1, int(index)),
        "mid_block": ("middle", 0, int(index)),
        "up_blocks": ("output", number, int(index)),
    }[part]
