"""A concept's preview inside its file, where programs that list models look for a picture."""

import base64
import io
from pathlib import Path

from PIL import Image

from escdiff.sharing.reading import read_tensors
from escdiff.support.files import save_tensors
from escdiff.support.modelspec import THUMBNAIL

SIDE, QUALITY = 256, 85  # pixels of the longer side at most, as ModelSpec asks for; of a JPEG


def thumbnail(picture: Image.Image) -> str:
    """A picture as a data URL."""
    small, buffer = picture.convert("RGB"), io.BytesIO()
    small.thumbnail((SIDE, SIDE))
    small.save(buffer, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def copy_with_preview(source: Path, target: Path, preview: Path) -> None:
    """Copy a safetensors file with a picture in its metadata, every tensor and every other key as it was."""
    tensors, metadata = read_tensors(source)
    with Image.open(preview) as picture:
        save_tensors(target, tensors, metadata | {THUMBNAIL: thumbnail(picture)})
