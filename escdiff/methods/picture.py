"""The picture of a concept, for a U-Net with an image adapter or gated attention in anybody's pipeline.

Such a U-Net asks for image embeddings or patches in every call. Each row of a packed conditioning says in its header
how it takes them: as the concept's picture, as none beside it (the guided half), or not at all, which is the stock
U-Net to the bit.
Legend: B rows, N image tokens, W their width, T token positions, D width of the text encoder.
"""

from contextvars import ContextVar

import torch
from torch import Tensor, nn

from escdiff.backbone.adapters.attached import image_layers
from escdiff.backbone.adapters.gated import is_gated, patches_argument
from escdiff.conditioning.header import BLANK, SHOWN, header_rows, read_picture

_takes_picture: ContextVar[Tensor | None] = ContextVar("escdiff_takes_picture", default=None)


class PictureFeed:
    """Hooks of a U-Net, until `remove`.

    Args:
        image: (N, W) or (W,), see `escdiff.concept.IMAGE_TOKENS`.
        tokens: T.
    """

    def __init__(self, unet: nn.Module, image: Tensor, tokens: int) -> None:
        self.image, self.tokens, self.gated = image, tokens, is_gated(unet)
        self._handles = [
            unet.register_forward_pre_hook(self._give, with_kwargs=True),
            unet.register_forward_hook(_forget, always_call=True),
        ]
        for name in image_layers(unet) if not self.gated else ():
            self._handles += [v.register_forward_hook(_limit) for v in unet.get_submodule(name).processor.to_v_ip]

    def remove(self) -> None:
        """Take the hooks out of the U-Net."""
        while self._handles:
            self._handles.pop().remove()

    def _give(self, unet: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        added, attention = (kwargs.get(name) or {} for name in ("added_cond_kwargs", "cross_attention_kwargs"))
        if "image_embeds" in added or "gligen" in attention:  # the caller's own
            return None
        states = args[2] if len(args) > 2 else kwargs["encoder_hidden_states"]
        beyond = states.shape[1] - header_rows(self.tokens, states.shape[2])
        packed = beyond > 0 and beyond % self.tokens == 0
        how_B = read_picture(states, self.tokens) if packed else states.new_zeros(len(states))
        shown = (how_B == SHOWN).to(states).view(-1, *[1] * (self.image.ndim + 1))
        embeds = shown * self.image.to(states)[None, None]  # (B, 1, N, W) or (B, 1, W)
        if self.gated:
            return args, kwargs | {"cross_attention_kwargs": {**attention, **patches_argument(embeds[:, 0])}}
        _takes_picture.set(how_B >= BLANK)
        return args, kwargs | {"added_cond_kwargs": {**added, "image_embeds": [embeds]}}


def _forget(*_) -> None:
    _takes_picture.set(None)


def _limit(module: nn.Module, args: tuple, values: Tensor) -> Tensor | None:
    """Forward hook of an image adapter's values: zero where a row takes no picture."""
    takes_B = _takes_picture.get()
    if takes_B is None:
        return None
    return torch.where(takes_B.view(-1, *[1] * (values.ndim - 1)), values, torch.zeros_like(values))
