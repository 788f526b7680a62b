"""ProSpect (Zhang et al. 2023, arXiv 2305.16225): a word vector for each of ten stages of the diffusion.

Space: 1 x 10. A small attention network makes the ten vectors from one learned token (section 4.2), as the authors'
code does; `network=False` learns the vectors themselves. Theirs: one picture, lr 1e-4, batch 1, 600 steps; their code
takes the stage of the batch's first timestep, which is right at batch 1 only. Here every sample has its own.
"""

import torch
from torch import Tensor, nn

from escdiff.backbone import Backbone
from escdiff.methods.ti import TI


class ProSpect(TI):
    """A vector per stage.

    Args:
        stages: how many, of equal length; or their bounds.
        network: make them from one token by a small attention network.
    """

    def __init__(
        self, backbone: Backbone, init: str = "object", vectors: int = 1, templates="auto", keep_norm: bool = True,
        stages=10, network: bool = True, heads: int = 4,
    ) -> None:  # fmt: skip
        super().__init__(backbone, init, vectors, templates, keep_norm, "tied", stages)
        self.network = None
        if network:
            count, width = self.space.num_stages, self.table.shape[-1]
            self.table = nn.Parameter(self.anchor("concept").clone())  # (K, D), the one token
            self.codes = nn.Parameter(torch.randn(count, 1, width) * self.table.norm(dim=-1).mean() / width**0.5)
            self.network = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.0, batch_first=True)
            self.leave = nn.Linear(width, width)
            nn.init.zeros_(self.leave.weight)  # start at the word
            nn.init.zeros_(self.leave.bias)

    def vectors(self, batch) -> dict[str, Tensor]:
        if self.network is None:
            return super().vectors(batch)
        tokens = (self.table + self.codes).transpose(0, 1)  # (K, S, D): the stages look at each other
        table = self.table + self.leave(self.network(tokens)).transpose(0, 1) * self.anchor("concept").norm()
        return {"concept": self.normed(table)[None, None]}
