"""FastComposer (Xiao et al. 2023, arXiv 2305.10431): each reference is fused into the state of its own noun.

In a concept, the noisier of two stages reads the plain words ("delayed subject conditioning"): cells of a grid in place
of code in the sampler. Theirs: CLIP-L's embedding, its two last layers trained,
`LN(MLP2(MLP1[h; e] + h))` at the noun, the whole U-Net, up to four subjects, the segment on random noise as its own
reference, references kept with p 0.9, no text with p 0.1, the error within the masks with p 0.5, localisation at 1e-3,
150k steps of 128, the first 10 of 50 steps by text alone. Ours: pooled patches of a frozen tower, low-rank keys and
values, two subjects, references that are other views.
"""

import torch
from torch import Tensor

from escdiff.backbone import Backbone
from escdiff.control.objectives import localise
from escdiff.encoder.vision import load_vision
from escdiff.methods.encoder_method import check_depths, pooled
from escdiff.methods.fused_nouns import FusedNouns


class FastComposer(FusedNouns):
    """A picture's pooled patches at each noun.

    Args:
        vision: see `escdiff.encoder.load_vision`. depths: whose pooled patches make the embedding.
        localised: weight of the localisation of the nouns' attention.
        init, rank, plain, keep, drop, masked, factor: see `FusedNouns`.

    Raises:
        UserError: depths that the tower lacks.
    """

    learns = "scenes"

    def __init__(
        self, backbone: Backbone, vision: str = "mini", depths=(1, 3), init: str = "object", rank: int = 8,
        plain: float = 0.2, keep: float = 0.9, drop: float = 0.1, masked: float = 0.5, localised: float = 1e-3,
        factor: int | None = None, templates="auto",
    ) -> None:  # fmt: skip
        tower = load_vision(vision)
        depths = check_depths("method.depths", depths, tower)
        super().__init__(backbone, len(depths) * tower.width, init, rank, plain, keep, drop, masked, factor, templates)
        self._tower, self.depths, self.localised = (tower,), depths, localised

    @torch.no_grad()
    def embed(self, pixels: Tensor, masks: Tensor | None) -> Tensor:
        tokens = self._tower[0].to(pixels.device)(pixels)
        return torch.cat([pooled(tokens[depth].float(), masks) for depth in self.depths], 1)

    def watch(self) -> tuple[str, ...]:
        return self.layers if self.localised else ()

    def losses(self, output, target, vectors, batch) -> dict[str, Tensor]:
        terms = super().losses(output, target, vectors, batch)
        if self.localised and self.masks(batch) is not None:
            maps, masks = self.maps(batch)
            terms["localisation"] = self.localised * (localise(maps, masks).mean() if len(maps) else maps.sum())
        return terms
