"""Shape and appearance taken apart: outlines after alignment, colours inside, texture inside.

No peer measures these apart from each other; a picture can keep a shape and lose its colours, and the other way round.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from scipy import ndimage
from scipy.stats import wasserstein_distance_nd
from skimage.color import rgb2lab
from skimage.filters import threshold_otsu
from torch import Tensor

from escdiff.data.pictures import to_pixels
from escdiff.encoder.vision import VisionBackbone
from escdiff.evaluation.metrics.base import PictureMetric

FRAME, ROOT_AREA = 128, 32  # pixels: of the common frame, and the root of a mask's area within it
CELL = 20.0  # side of a histogram's cells in Lab; pixels of one cell stand for their mean, so coarse cells cost little
SIDE = 128  # pixels, at which colours are counted

Mask = np.ndarray  # (H, W) bool


def align(mask: Mask) -> Mask:
    """A mask moved and scaled to a common frame: centroid in the middle, area `ROOT_AREA` squared."""
    if not mask.any():
        return np.zeros((FRAME, FRAME), bool)
    # A pixel of the frame stands for `scale` pixels of the mask, so that every outline gets the same area.
    scale, centre = np.sqrt(mask.sum()) / ROOT_AREA, np.array(ndimage.center_of_mass(mask))
    offset = centre - scale * (FRAME - 1) / 2
    return ndimage.affine_transform(mask.astype(float), [scale, scale], offset, (FRAME, FRAME), order=1) > 0.5


def mask_iou(first: Mask, second: Mask) -> float:
    """Intersection over union after alignment: 1 for the same outline wherever and however large it is."""
    a, b = align(first), align(second)
    union = (a | b).sum()
    # Two empty masks agree on nothing: no object was painted.
    return float((a & b).sum() / union) if union else 0.0


def lab_distance(picture: Image.Image, mask: Mask, other: Image.Image, other_mask: Mask) -> float:
    """Earth mover's distance (Rubner et al. 2000) of the Lab histograms inside the masks, in units of CIE76 delta E.

    Gives nan where a mask is empty.
    """
    if not (mask.any() and other_mask.any()):
        return float("nan")
    # Of cells, not of pixels: the exact transport between ten thousand colours would take minutes.
    (a, p), (b, q) = _histogram(picture, mask), _histogram(other, other_mask)
    return float(wasserstein_distance_nd(a, b, p, q))


def gram_distance(first: Tensor, second: Tensor) -> float:
    """|G - H| / (|G| + |H|) in 0..1 of tokens (N, W), (M, W) and their Gram matrices (Gatys et al. 2016)."""
    if not (len(first) and len(second)):
        return float("nan")
    # By the number of tokens, so that a large object's matrix is no larger than a small one's.
    g, h = (tokens.T @ tokens / len(tokens) for tokens in (first, second))
    return float((g - h).norm() / (g.norm() + h.norm()).clamp_min(1e-12))


def plain_mask(picture: Image.Image) -> Mask:
    """The object before a plain background: what differs in Lab from the picture's rim, by Otsu's threshold (1979)."""
    lab = rgb2lab(np.asarray(picture.convert("RGB")))
    rim = np.concatenate([lab[0], lab[-1], lab[:, 0], lab[:, -1]])
    # The median, so that an object which touches the rim does not become the background.
    distance = np.linalg.norm(lab - np.median(rim, axis=0), axis=-1)
    return distance > threshold_otsu(distance) if distance.max() > distance.min() else np.zeros(distance.shape, bool)


class MaskIoU(PictureMetric):
    """`mask_iou` as a metric of pictures."""

    against, unit = "shape", "overlap"

    def score(self, masks: Sequence[Mask], references: Sequence[Mask]) -> Tensor:
        return torch.tensor([mask_iou(a, b) for a, b in zip(masks, references, strict=True)])


class LabDistance(PictureMetric):
    """`lab_distance` as a metric of pictures."""

    against, unit = "appearance", "delta E"
    higher_is_better = False

    def score(
        self, pictures: Sequence[Image.Image], masks: Sequence[Mask], references: Sequence[Image.Image],
        reference_masks: Sequence[Mask],
    ) -> Tensor:  # fmt: skip
        rows = zip(pictures, masks, references, reference_masks, strict=True)
        return torch.tensor([lab_distance(*row) for row in rows])


class GramDistance(PictureMetric):
    """Mean `gram_distance` over depths of a frozen tower's patch tokens inside the masks.

    Args:
        depths: of `VisionBackbone.forward`; early ones see texture, late ones objects.
    """

    against, unit = "appearance", "distance"
    higher_is_better = False

    def __init__(self, vision: VisionBackbone, depths: Sequence[int], **options) -> None:
        super().__init__(**options)
        self.vision, self.depths = vision, tuple(depths)

    def score(
        self, pictures: Sequence[Image.Image], masks: Sequence[Mask], references: Sequence[Image.Image],
        reference_masks: Sequence[Mask],
    ) -> Tensor:  # fmt: skip
        rows = zip(self._tokens(pictures, masks), self._tokens(references, reference_masks), strict=True)
        return torch.tensor([np.mean([gram_distance(a, b) for a, b in zip(*row, strict=True)]) for row in rows])

    @torch.no_grad()
    def _tokens(self, pictures: Sequence[Image.Image], masks: Sequence[Mask]) -> list[list[Tensor]]:
        """Picture by picture, the tokens inside its mask at each depth."""
        pixels = torch.stack([to_pixels(picture, self.vision.image_size) for picture in pictures])
        depths, side = self.vision(pixels), round(self.vision.num_patches**0.5)
        rows = []
        for i, mask in enumerate(masks):
            shown = torch.from_numpy(np.asarray(mask, np.float32))[None, None]
            share = torch.nn.functional.interpolate(shown, (side, side), mode="area").flatten()
            # A thin object may cover no token by half; then the tokens that it covers most stand for it.
            inside = share >= min(0.5, float(share.max())) if mask.any() else torch.zeros_like(share, dtype=torch.bool)
            rows.append([depths[d][i][inside] for d in self.depths])
        return rows


def _histogram(picture: Image.Image, mask: Mask) -> tuple[np.ndarray, np.ndarray]:
    """Mean colours (N, 3) of the occupied cells, and their shares."""
    picture = picture.convert("RGB")
    scale = min(1.0, SIDE / max(picture.size))
    size = tuple(max(1, round(side * scale)) for side in picture.size)
    # Nearest neighbour, since a mask has no values between; colours are averaged over the area below.
    small = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    if not small.any():  # a mask too thin to survive
        size, small = picture.size, mask
    lab = rgb2lab(np.asarray(picture.resize(size, Image.Resampling.BOX)))[small]
    _, cell, count = np.unique(np.floor(lab / CELL), axis=0, return_inverse=True, return_counts=True)
    # Some versions of NumPy give this inverse a second axis.
    cell = cell.reshape(-1)
    means = np.stack([np.bincount(cell, lab[:, i]) for i in range(3)], 1) / count[:, None]
    return means, count / count.sum()
