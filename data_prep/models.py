"""Models by name for the stages that use them: loaded once per process, weights from safetensors, no foreign code."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from escdiff.backbone import mini_folder
from escdiff.errors import UserError
from escdiff.quiet import quiet_libraries


@functools.lru_cache(2)
def load(kind: str, name: str, processor: str = "AutoProcessor") -> tuple[Any, Any]:
    """(model, processor) of a folder or hub id, frozen, on the GPU if there is one.

    Args:
        kind, processor: names of transformers' Auto classes, e.g. "AutoModel".

    Raises:
        UserError: they cannot be loaded.
    """
    import transformers

    quiet_libraries()
    torch.set_num_threads(1)  # the processes fill the cores, and more threads may sum in another order
    source = str(Path(name).expanduser()) if Path(name).expanduser().is_dir() else name
    try:
        model = getattr(transformers, kind).from_pretrained(source, use_safetensors=True, dtype=torch.float32)
        reader = getattr(transformers, processor).from_pretrained(source)
    except (OSError, ValueError, KeyError, ImportError) as error:
        what = " ".join(str(error).split())[:300]
        raise UserError(f"the model {name} cannot be loaded ({what}); give a folder or hub id of its kind") from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval().requires_grad_(False), reader


def clip_name(name: str) -> str:
    """The bundled model's CLIP for "mini", else the name."""
    return str(mini_folder() / "clip") if name == "mini" else name


@torch.inference_mode()
def clip_features(name: str, pictures: list[Image.Image]) -> np.ndarray:
    """Image embeddings (B, D) float32 of unit length.

    Raises:
        UserError: no such model, or it has no image embeddings.
    """
    model, processor = load("AutoModel", clip_name(name), "AutoImageProcessor")
    if not hasattr(model, "get_image_features"):
        raise UserError(f"the model {name} has no image embeddings; give a CLIP or SigLIP")
    pixels = processor(images=pictures, return_tensors="pt")["pixel_values"].to(model.device)
    features = model.get_image_features(pixel_values=pixels).pooler_output.float()
    return torch.nn.functional.normalize(features, dim=-1).cpu().numpy()
