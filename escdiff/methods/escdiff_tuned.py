"""ESCDiff's own prediction, then a few optimisation steps from it: what does optimisation still add?

Space: that of the encoder, P+ by default, with its attributes shape and appearance. With 0 steps it is the encoder's
concept to the bit; 5, 15 and 50 make the curve. Several references give the mean of their predictions.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from escdiff.backbone.branches import set_branches
from escdiff.backbone.frozen import Frozen
from escdiff.concept import ATTRIBUTES
from escdiff.encoder import ConceptEncoder
from escdiff.methods.base import Method


class ESCDiffTuned(Method):
    """A residual on the encoder's vectors.

    Args:
        encoder: folder of the concept encoder; null for the bundled one.
        residual: weight of the residual's mean square, in units of the anchors' norm.
    """

    def __init__(self, backbone: Frozen, encoder: str | None = None, templates="auto", residual: float = 0.0) -> None:
        reader = ConceptEncoder.from_pretrained(Path(encoder) if encoder else None, backbone)
        super().__init__(backbone, reader.space, reader.config.anchors, 1, templates)
        if reader.config.branch_rank:
            set_branches(backbone.unet, dict.fromkeys(ATTRIBUTES, 1.0))
        self._reader, self.residual_weight = (reader.to(backbone.device),), residual
        size = (self.space.num_layers, self.space.num_stages)
        self.residuals = nn.ParameterDict()
        for attribute in ATTRIBUTES:
            anchor = reader.anchor(attribute).detach().float()
            self.register_buffer(f"anchor_{attribute}", anchor, persistent=False)
            self.register_buffer(f"predicted_{attribute}", anchor.expand(*size, -1, -1).clone())  # (L, S, K, D)
            self.residuals[attribute] = nn.Parameter(torch.zeros(*size, *anchor.shape))
        self.attributes = ATTRIBUTES
        self._gates: dict[str, Tensor] = {}

    @property
    def phrase(self) -> str:
        return "<appearance> <shape>"  # as most of the encoder's own training prompts have it

    def start(self, pixels: Tensor, masks: Tensor | None = None) -> None:
        found = [self._reader[0].encode(p, None if masks is None else masks[i]) for i, p in enumerate(pixels)]
        for attribute in ATTRIBUTES:
            mean = torch.stack([concept.vectors[attribute] for concept in found]).mean(0)
            getattr(self, f"predicted_{attribute}").copy_(mean)
        self._gates = found[0].gates

    def vectors(self, batch) -> dict[str, Tensor]:
        return {a: (getattr(self, f"predicted_{a}") + self.residuals[a])[None] for a in ATTRIBUTES}

    def regularizers(self, vectors) -> dict[str, Tensor]:
        if not self.residual_weight:
            return {}
        parts = (self.residuals[a].square().sum(-1).mean() / self.anchor(a).square().sum(-1).mean() for a in ATTRIBUTES)
        return {"residual": self.residual_weight * sum(parts)}

    def concept(self, notes=None):
        found = super().concept(notes)
        found.gates, found.branches = dict(self._gates), self._reader[0].needed_branches
        return found
