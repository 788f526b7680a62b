"""Distances between two pictures by networks that were fitted to people's judgement: LPIPS and DreamSim."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from escdiff.data.pictures import to_pixels
from escdiff.evaluation.metrics.base import PictureMetric
from escdiff.support.errors import UserError

SIZE = 256  # pixels; pictures of several sizes are compared at this one


class Lpips(PictureMetric):
    """LPIPS (Zhang et al. 2018): mean distance of each picture to every real one; 0 for the same picture.

    Args:
        net: alex, vgg or squeeze.
    """

    against, unit = "real", "distance"
    higher_is_better = False

    def __init__(self, net: str = "alex", **options) -> None:
        super().__init__(**options)
        self.lpips = LearnedPerceptualImagePatchSimilarity(net_type=net)

    def score(self, pictures: Sequence[Image.Image], real: Sequence[Image.Image]) -> Tensor:
        """(B,) of B pictures and N real ones."""
        painted, references = ([to_pixels(picture, SIZE)[None] for picture in group] for group in (pictures, real))
        with torch.no_grad():
            return torch.stack([torch.stack([self.lpips(a, b) for b in references]).mean() for a in painted])


class DreamSim(PictureMetric):
    """DreamSim (Fu et al. 2023): mean distance of each picture to every real one; 0 for the same picture.

    Needs `escdiff[eval]`, and its weights from their authors at the first use.
    """

    against, unit = "real", "distance"
    higher_is_better = False

    def __init__(self, kind: str = "ensemble", device: str = "cpu", **options) -> None:
        super().__init__(**options)
        try:
            from dreamsim import dreamsim
        except ImportError:
            raise UserError("the metric dreamsim needs its library; pip install 'escdiff[eval]'") from None
        self.model, self.prepare = dreamsim(pretrained=True, device=device, dreamsim_type=kind)
        self.place = device

    def score(self, pictures: Sequence[Image.Image], real: Sequence[Image.Image]) -> Tensor:
        """(B,) of B pictures and N real ones."""
        painted, references = ([self.prepare(p).to(self.place) for p in group] for group in (pictures, real))
        with torch.no_grad():
            return torch.stack([torch.stack([self.model(a, b).squeeze() for b in references]).mean() for a in painted])
