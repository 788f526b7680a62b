"""A small network that tells faces apart by their latents: what PortraitBooth fuses and its identity loss reads.

It never judges: the judge of faces is another network, trained on other pictures (`escdiff.mini`).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from escdiff.control.objectives import contrast


class Recogniser(nn.Module):
    """Latents (B, C, h, w) to embeddings (B, E) of norm 1."""

    def __init__(self, channels: int, embedding: int = 64, width: int = 64) -> None:
        super().__init__()
        layers, before = [], channels
        for after, stride in ((width, 1), (2 * width, 2), (2 * width, 2)):
            layers += [nn.Conv2d(before, after, 3, stride, 1), nn.GroupNorm(8, after), nn.SiLU()]
            before = after
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(before, embedding)

    def forward(self, latents: Tensor) -> Tensor:
        return F.normalize(self.head(self.body(latents.float()).mean((2, 3))), dim=-1)

    def frozen(self, latents: Tensor) -> Tensor:
        """As `forward`, with gradients for the latents alone."""
        parameters = {name: p.detach() for name, p in self.named_parameters()}
        return torch.func.functional_call(self, parameters, (latents,))


def likeness(a_BE: Tensor, b_BE: Tensor, temperature: float = 0.1) -> Tensor:
    """The metric loss: two pictures of a face near to each other, apart from all others (NT-Xent; Chen et al. 2020,
    arXiv 2002.05709). A scalar."""
    labels = list(range(len(a_BE)))
    return contrast(torch.cat([a_BE, b_BE])[None], labels + labels, temperature).mean()
