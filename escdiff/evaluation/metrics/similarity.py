"""Cosines: CLIP-T, CLIP-I, DINO, DINOv2; and the kernel inception distance.

Plain cosines between -1 and 1, as in DreamBooth's evaluation (Ruiz et al. 2023, section 4.1). Others report the same
times 2.5 (CLIPScore, so also Custom Diffusion's CLIP-T) or times 100; divide theirs before you compare.
"""

import warnings
from collections.abc import Iterable, Sequence

import torch
from PIL import Image
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.image.kid import KernelInceptionDistance

from escdiff.data.pictures import to_pixels
from escdiff.evaluation.metrics.base import PictureMetric
from escdiff.evaluation.metrics.features import Clip, Features
from escdiff.support.errors import UserError

INCEPTION = "inception"
SUBSET = 50  # pictures; the distance is unbiased at any size, and small sets have no thousand


class TextSimilarity(PictureMetric):
    """CLIP-T: cosine of each picture with its own text. The text must hold no placeholder."""

    against, unit = "text", "cosine"

    def __init__(self, clip: Clip, **options) -> None:
        super().__init__(**options)
        self.clip = clip

    def score(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """(B,) of B pictures and B texts."""
        check_texts(texts)
        return torch.cosine_similarity(self.clip.pictures(pictures), self.clip.texts(texts), dim=-1)


def check_texts(texts: Iterable[str]) -> None:
    """Refuse texts that hold a placeholder, or what looks like one.

    Raises:
        UserError: names the first of them.
    """
    for text in texts:
        if "<" in text or "*" in text:
            raise UserError(
                f"the text {text!r} holds < or *, the mark of a placeholder, which would be scored as a word; write it "
                "without"
            )


class ImageSimilarity(PictureMetric):
    """CLIP-I, DINO, DINOv2: mean cosine of each picture with every real one.

    All pairs, not matched ones: the mean over pictures is then the mean over all pairs of generated and real.
    """

    against, unit = "real", "cosine"

    def __init__(self, features: Features, **options) -> None:
        super().__init__(**options)
        self.features = features

    def score(self, pictures: Sequence[Image.Image], real: Sequence[Image.Image]) -> Tensor:
        """(B,) of B pictures and N real ones of the same subject."""
        vectors, references = (nn.functional.normalize(self.features.pictures(p), dim=-1) for p in (pictures, real))
        return (vectors @ references.T).mean(1)


class KernelDistance(Metric):
    """KID (Binkowski et al. 2018) between the pictures and the real ones, by torchmetrics.

    Args:
        features: whose vectors are compared, or "inception" for the network of the paper (needs `escdiff[eval]`).
    """

    against, unit = "set", "distance"
    full_state_update = False
    higher_is_better = False

    def __init__(self, features: Features | str = INCEPTION, **options) -> None:
        super().__init__(**options)
        self.features = features
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it keeps all features, which is known
                # The least size that works; set at the end, when the numbers are known.
                self.kid = KernelInceptionDistance(2048 if features == INCEPTION else nn.Identity(), subset_size=1)
        except ModuleNotFoundError:
            raise UserError("kid by inception needs torch-fidelity; pip install 'escdiff[eval]'") from None

    def update(self, pictures: Sequence[Image.Image], real: Sequence[Image.Image]) -> None:
        for group, is_real in ((pictures, False), (real, True)):
            if not len(group):
                continue
            if self.features == INCEPTION:
                # The network's own size (Szegedy et al. 2016).
                pixels = torch.stack([to_pixels(picture, 299) for picture in group])
                self.kid.update(((pixels + 1) * 127.5).round().to(torch.uint8), real=is_real)
            else:
                self.kid.update(self.features.pictures(group), real=is_real)

    def compute(self) -> Tensor:
        """Mean over 100 random subsets of at most `SUBSET` pictures, of a fixed seed."""
        counts = [sum(map(len, part)) for part in (self.kid.real_features, self.kid.fake_features)]
        self.kid.subset_size = min(SUBSET, *counts)
        # The unbiased estimate of one picture divides by zero.
        if self.kid.subset_size < 2:
            return torch.tensor(torch.nan)
        # torchmetrics draws from the global generator: the figure must not depend on what ran before, nor change it.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.kid.compute()[0]

    def reset(self) -> None:
        super().reset()
        self.kid.reset()
