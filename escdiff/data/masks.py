"""Masks of a picture's subject by a segmentation model of transformers, and their measures.

Legend: H, W height and width of the picture.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from escdiff.data.pretrained import DTYPES, cannot_load, load_model, one_thread
from escdiff.support.errors import UserError

SubjectMask = tuple[np.ndarray, float] | None  # bool (H, W) and the model's score, or 1; None: nothing there


@functools.lru_cache(1)
def load_segmenter(name: str, device: str = "cpu", dtype: str = "float32") -> tuple[Any, Any]:
    """(CLIPSeg, its processor), or (a pipeline of transformers, None).

    Raises:
        UserError: it cannot be loaded.
    """
    import transformers

    try:
        kind = transformers.AutoConfig.from_pretrained(name).model_type
        if kind == "clipseg":
            return load_model("CLIPSegForImageSegmentation", name, device=device, dtype=dtype)
        options = {
            "image_processor": transformers.AutoImageProcessor.from_pretrained(name), "device": device,
            "dtype": DTYPES[dtype], "model_kwargs": {"use_safetensors": True},
        }  # fmt: skip
        return transformers.pipeline("image-segmentation", name, **options), None
    except UserError:
        raise
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise cannot_load(name, error) from error


def subject_masks(
    model: str, pictures: Sequence[Image.Image], categories: Sequence[str], device: str = "cpu", dtype: str = "float32"
) -> list[SubjectMask]:
    """Each picture's subject.

    CLIPSeg is asked for the category. Of any other model's segments that of the category is taken, or, if it
    knows none such, the most central large one.

    Raises:
        UserError: no such model.
    """
    segmenter, processor = load_segmenter(model, device, dtype)
    with one_thread(), torch.inference_mode():
        if processor is not None:
            return _by_words(segmenter, processor, pictures, categories)
        segments = [segmenter(picture) for picture in pictures]  # a pipeline gives each its own size in turn
    return [_chosen(*picture) for picture in zip(segments, pictures, categories, strict=True)]


def subject_mask(model: str, picture: Image.Image, category: str) -> SubjectMask:
    """One picture's subject, see `subject_masks`."""
    return subject_masks(model, [picture], [category])[0]


def clean(mask: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    """A mask (H, W) without specks (under a twentieth of the largest piece), and its measures before that."""
    pieces, count = ndimage.label(mask)
    rim = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).mean()
    if not count:
        return mask, {"area": 0.0, "piece": 0.0, "rim": float(rim)}
    sizes = np.bincount(pieces.ravel())[1:]
    measures = {"area": float(mask.mean()), "piece": float(sizes.max() / sizes.sum()), "rim": float(rim)}
    large = np.flatnonzero(sizes * 20 >= sizes.max()) + 1
    return np.isin(pieces, large), measures


def _by_words(model, processor, pictures: Sequence[Image.Image], categories: Sequence[str]) -> list[SubjectMask]:
    text = [f"a photo of a {category or 'object'}" for category in categories]
    inputs = processor(text=text, images=list(pictures), return_tensors="pt", padding=True).to(model.device)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    heats = model(**inputs).logits.float().sigmoid()
    heats = heats.reshape(len(pictures), 1, *heats.shape[-2:])
    scored = []
    for heat, picture in zip(heats, pictures, strict=True):
        heat = torch.nn.functional.interpolate(heat[None], picture.size[::-1], mode="bilinear")[0, 0].cpu().numpy()
        mask = heat > 0.5
        scored.append((mask, float(heat[mask].mean()) if mask.any() else 0.0))
    return scored


def _chosen(segments: Sequence[dict[str, Any]], picture: Image.Image, category: str) -> SubjectMask:
    best: tuple[float, np.ndarray, float] | None = None
    weight = _centre(picture.height, picture.width)
    for piece in segments:
        mask = np.asarray(piece["mask"]) > 127
        named = bool(category) and category.lower() in str(piece["label"]).lower()
        rank = float((mask * weight).sum()) + named
        if mask.any() and (best is None or rank > best[0]):
            best = rank, mask, 1.0 if piece.get("score") is None else float(piece["score"])
    return best and best[1:]


def _centre(height: int, width: int) -> np.ndarray:
    """Weights (H, W) that sum to 1, largest in the middle."""
    y, x = (np.exp(-0.5 * (np.linspace(-1, 1, n) / 0.5) ** 2) for n in (height, width))
    weight = y[:, None] * x[None]
    return weight / weight.sum()
