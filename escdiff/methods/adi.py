"""ADI (Huang et al. 2023, arXiv 2311.15841): an action as a word per layer, learned where actions differ.

Space: P+, 16 x 1. After the abstract, as there is no public code: a batch has triples of an exemplar, another exemplar
(same action, another actor and scene) and the exemplar's counterpart (same actor and scene, another action). Channels
of the words' gradients that differ within the action, or agree within the scene, have nothing to do with the action;
they are masked. Recalled, not checked: the share 0.6 that each comparison masks, lr 1e-4, 3,000 steps on SD 2.1. The
paper makes the counterparts by inverting contexts first; here they are given (`NAME.other.png`), exact where they are
rendered. The pictures of a triple share noise and timestep (ours), so that their gradients can be compared.
"""

import numpy as np
import torch
from torch import Tensor

from escdiff.backbone import Backbone
from escdiff.methods import losses
from escdiff.methods.xti import XTI
from escdiff.support.errors import UserError


class ADI(XTI):
    """XTI of an action.

    Args:
        masked: share of the channels that either comparison masks; 0 is XTI on the exemplars.

    Raises:
        UserError: a share beyond the whole.
    """

    attribute = "action"
    few, many = 2, 10
    needs = ("texts", "others")
    copies = 3

    def __init__(
        self, backbone: Backbone, init: str = "standing", vectors: int = 1, keep_norm: bool = True,
        layers: str = "each", masked: float = 0.6,
    ) -> None:  # fmt: skip
        if not 0 <= masked <= 1:
            raise UserError(f"method.masked={masked} given; expected a share of the channels from 0 to 1")
        super().__init__(backbone, init, vectors, "auto", keep_norm, layers, lr_one=None)
        self.masked = masked

    def rows(self, rng: np.random.Generator, count: int, size: int) -> np.ndarray:
        """`size` exemplars, as many others of the action, and the exemplars' counterparts."""
        exemplars = count // 2
        first = rng.integers(exemplars, size=size)
        second = (first + rng.integers(1, exemplars, size=size)) % exemplars
        return np.concatenate([first, second, first + exemplars])

    def vectors(self, batch) -> dict[str, Tensor]:
        if not batch:
            return super().vectors(batch)
        samples = self.table.expand(len(batch["timesteps"]), -1, -1, -1, -1)  # so that each has its own gradient
        if samples.requires_grad:
            samples.register_hook(self.mask)
        return {self.attribute: self.normed(samples)}

    def mask(self, gradients_BLSKD: Tensor) -> Tensor:
        """The exemplars' gradients in channels of the action; none of what they are compared with."""
        own, action, scene = gradients_BLSKD.chunk(self.copies)
        kept = action_channels(own, action, scene, self.masked)
        return torch.cat([own * kept, torch.zeros_like(action), torch.zeros_like(scene)])

    def losses(self, output, target, vectors, batch) -> dict[str, Tensor]:
        """Each picture's error alike; that of the counterparts serves the comparison alone."""
        parts = zip(output.chunk(self.copies), target.chunk(self.copies), strict=True)
        errors = [losses.denoising(*part) for part in parts]
        terms = dict(zip(("denoising", "same_action", "same_scene"), errors, strict=True))
        return terms | self.regularizers(vectors)


def action_channels(own: Tensor, action: Tensor, scene: Tensor, masked: float) -> Tensor:
    """1 at the channels (..., D) of gradients that say the action, 0 elsewhere.

    Masked are the share of channels in which two pictures of the action differ most, and the share in which two of the
    scene differ least.
    """
    count = round(masked * own.shape[-1])
    differ = (own - action).abs().topk(count, dim=-1).indices
    agree = (own - scene).abs().topk(count, dim=-1, largest=False).indices
    kept = torch.ones_like(own)
    return kept.scatter(-1, differ, 0.0).scatter(-1, agree, 0.0)
