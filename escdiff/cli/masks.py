"""`mask=FILE` and `mask=auto` of `python infer.py`: which part of a cluttered reference the filters read.

`auto` takes the picture's transparency, else a transformers segmentation model if one is named, else what differs from
the picture's rim: the boundary prior of salient-object detection (Wei et al. 2012, "Geodesic saliency using background
priors"), in CIELAB and cut by Otsu's threshold.
"""

import logging
from collections.abc import Iterable

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from escdiff.data.pictures import to_mask
from escdiff.support.errors import UserError

AREA = (0.02, 0.9)  # a mask of less or more of the picture is no good
RIM = 0.04  # of the shorter side, what counts as rim
log = logging.getLogger(__name__)


def read_masks(sources: Iterable[str], mask: str | None, segmenter: str | None, size: int) -> dict[str, Tensor]:
    """Picture's path -> (1, size, size), 1 on the object; pictures without a clear object are left out, with a warning.

    Raises:
        UserError: a mask's file with several pictures, of another size than its picture, or with nothing in it; no
            such model.
    """
    sources = list(sources)
    if not mask:
        return {}
    if mask != "auto" and len(sources) != 1:
        raise UserError(f"mask={mask} was given with {len(sources)} pictures; expected one, or mask=auto")
    masks = {source: find_mask(source, mask, segmenter) for source in sources}
    return {source: to_tensor(array, size) for source, array in masks.items() if array is not None}


def find_mask(source: str, mask: str, segmenter: str | None) -> np.ndarray | None:
    """Bool (H, W) of a picture's object."""
    from escdiff.data.masks import clean, subject_mask
    from escdiff.data.pictures import decode_picture, expand, open_image, read_file

    if mask != "auto":
        mask_picture, picture = open_image(mask).convert("L"), open_image(source)
        if mask_picture.size != picture.size:
            raise UserError(
                f"the mask {mask} has {mask_picture.size} pixels, its picture {picture.size}; expected the same"
            )
        array = np.asarray(mask_picture) > 127
        if not array.any():
            raise UserError(f"the mask {mask} is all black; expected white on the object")
        return array
    file = expand(source)
    picture = decode_picture(read_file(file), str(file)) if file.is_file() else None
    if picture is not None and picture.alpha is not None:
        return np.asarray(picture.alpha) > 127
    rgb = picture.rgb if picture is not None else open_image(source)
    if segmenter:
        scored = subject_mask(segmenter, rgb, "")
        array = scored[0] if scored else np.zeros((1, 1), bool)
    else:
        array = salient(rgb)
    array, measures = clean(array)
    if AREA[0] <= measures["area"] <= AREA[1]:
        return array
    log.warning("%s shows no clear object; the whole picture is read", source)
    return None


def salient(picture: Image.Image) -> np.ndarray:
    """Bool (H, W): what differs in colour from the nearest of the rim's colours."""
    from scipy.cluster.vq import kmeans2
    from scipy.ndimage import binary_fill_holes, gaussian_filter
    from skimage.color import rgb2lab
    from skimage.filters import threshold_otsu

    small = ImageOps.contain(picture, (256, 256))
    lab = rgb2lab(np.asarray(small))
    band = max(1, round(RIM * min(lab.shape[:2])))
    inside = np.zeros(lab.shape[:2], bool)
    inside[band:-band, band:-band] = True
    colours, _ = kmeans2(lab[~inside], 4, minit="++", seed=0, missing="warn")
    distance = np.linalg.norm(lab[:, :, None] - colours, axis=-1).min(-1)
    distance = gaussian_filter(distance, 1.0)
    mask = binary_fill_holes(distance > threshold_otsu(distance))
    return np.asarray(Image.fromarray(mask).resize(picture.size, Image.Resampling.NEAREST))


def to_tensor(mask: np.ndarray, size: int) -> Tensor:
    """(1, size, size) of the centre square, as the encoder sees the picture."""
    return to_mask(Image.fromarray(mask.astype(np.uint8) * 255), size)


def read_picture(path: str, mask: str | None, segmenter: str | None, side: int) -> tuple[Image.Image, Tensor | None]:
    """The centre square of a picture at `side` pixels, and its mask (1, side, side), or None for mask=None.

    Raises:
        UserError: no such picture, a mask of another size, or no clear object for mask=auto.
    """
    from escdiff.data.pictures import open_image

    picture, tensor = open_image(path), None
    if picture.size != (side, side):
        log.warning("%s has %d x %d pixels; its centre is read at %d x %d", path, *picture.size, side, side)
    if mask:
        array = find_mask(path, mask, segmenter)
        if array is None:
            raise UserError(f"{path} shows no clear object; expected edit.mask=FILE, white on it")
        tensor = (to_tensor(array, side) > 0.5).float()
    return ImageOps.fit(picture, (side, side)), tensor
