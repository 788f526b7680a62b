"""Models for the stages: on which device this process runs them, and CLIP's embeddings."""

import numpy as np
import torch
from PIL import Image

from escdiff.backbone import mini_folder
from escdiff.data.pretrained import load_model, one_thread
from escdiff.support.errors import UserError
from escdiff.support.jobs.processes import place


def device_here(device: str = "auto") -> str:
    """The device of this process: with "auto" each worker has a GPU of its own as long as there are some.

    Raises:
        UserError: it is not there.
    """
    gpus = torch.cuda.device_count()
    if device == "auto":
        return f"cuda:{place() % gpus}" if gpus else "cpu"
    kind, _, number = device.partition(":")
    counts = {"cpu": 1, "cuda": gpus, "mps": int(torch.backends.mps.is_available())}
    if number not in ("", *map(str, range(counts.get(kind, 0)))) or not counts.get(kind):
        names = ", ".join(f"{name} ({count})" for name, count in counts.items() if count)
        raise UserError(f"--device is {device}; give auto or one of those here: {names}")
    return device


def workers_for(device: str) -> int:
    """Processes that a model's stage starts by default: one per GPU, else one per core (0)."""
    device_here(device)
    if device == "auto":
        return torch.cuda.device_count()
    return 0 if device == "cpu" else 1


def clip_name(name: str) -> str:
    """The bundled model's CLIP for "mini", else the name."""
    return str(mini_folder() / "clip") if name == "mini" else name


@torch.inference_mode()
def clip_features(name: str, pictures: list[Image.Image], device: str = "cpu", dtype: str = "float32") -> np.ndarray:
    """Image embeddings (B, D) float32 of unit length.

    Raises:
        UserError: no such model, or it has no image embeddings.
    """
    model, processor = load_model("AutoModel", clip_name(name), "AutoImageProcessor", device, dtype)
    if not hasattr(model, "get_image_features"):
        raise UserError(f"the model {name} has no image embeddings; give a CLIP or SigLIP")
    pixels = processor(images=pictures, return_tensors="pt")["pixel_values"].to(model.device, model.dtype)
    with one_thread():
        features = model.get_image_features(pixel_values=pixels).pooler_output.float()
        return torch.nn.functional.normalize(features, dim=-1).cpu().numpy()
