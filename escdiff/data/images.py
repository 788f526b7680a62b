"""Reading pictures that people give: every oddity is converted on purpose or refused in one sentence.

The header is checked before a pixel is decoded, so a decompression bomb costs nothing.
"""

import io
import logging
import os
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from escdiff.errors import UserError

MAX_PIXELS = 64_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_KNOWN = "JPEG, PNG, WebP, BMP, GIF, TIFF or PPM"

log = logging.getLogger(__name__)


def open_image(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open a picture, or the only picture of a folder, as RGB.

    EXIF rotation is applied; transparency is composited on white; 16-bit, 32-bit and float pictures are
    rescaled, not cut off; CMYK, greyscale and palette pictures are converted; an animation gives its first
    frame (logged as a warning).

    Raises:
        UserError: the file is missing, unreadable, no picture, of a format not in `FORMATS`, truncated, or
            has more than `max_pixels` pixels.
    """
    file = _resolve(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the image {file}: {error.strerror}; check its permissions") from error
    return decode_image(data, str(file), max_pixels)


def decode_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode the bytes of a picture to RGB as `open_image` does; `name` is what errors call it.

    Raises:
        UserError: as `open_image`.
    """
    if not data:
        raise UserError(f"the image {name} is an empty file; give a picture ({_KNOWN})")
    with warnings.catch_warnings():
        # Pillow's own limits come after ours; its warning would only add noise.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = _read_header(data, name, max_pixels)
        try:
            if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
                log.warning("%s has %d frames; only the first is used", name, image.n_frames)
            image.load()
            return to_rgb(ImageOps.exif_transpose(image))
        # A damaged file can raise nearly anything from inside a codec: struct.error, zlib errors, ...
        except Exception as error:
            what = f"the image {name} is truncated or damaged ({error})"
            raise UserError(f"{what}; save or fetch it again") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a decoded picture of any mode to 8-bit RGB without saturating and without invented colours."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        return _rescaled(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def list_images(folder: str | os.PathLike) -> list[Path]:
    """The pictures of a folder, sorted by name.

    Raises:
        UserError: the folder is missing, not a folder, or holds no picture.
    """
    root = expand(folder)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give a folder of images ({_KNOWN})")
    files = sorted(f for f in root.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
    if not files:
        raise UserError(f"the folder {root} holds no images; put {_KNOWN} files in it")
    return files


def expand(path: str | os.PathLike) -> Path:
    """A path as a person types or pastes it: `~`, blanks and quotes around it, escaped blanks."""
    text = os.fspath(path)
    trimmed = text.strip()
    if len(trimmed) > 1 and trimmed[0] == trimmed[-1] and trimmed[0] in "'\"":
        trimmed = trimmed[1:-1]
    for candidate in (text, trimmed, trimmed.replace("\\ ", " ")):
        if candidate and "\0" not in candidate and Path(candidate).expanduser().exists():
            return Path(candidate).expanduser()
    return Path(trimmed.replace("\0", "?")).expanduser()


def to_pixels(image: Image.Image, size: int | None = None) -> Tensor:
    """RGB picture -> (3, H, W) float32 in [-1, 1]; with `size`, its centre square resized to size x size."""
    if size is not None:
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    array = np.asarray(image, dtype=np.uint8)
    return torch.from_numpy(array.copy()).permute(2, 0, 1).float().div_(127.5).sub_(1)


def to_pil(pixels: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1] -> RGB picture; values outside are clipped."""
    levels = pixels.detach().float().cpu().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


def _resolve(path: str | os.PathLike) -> Path:
    if not os.fspath(path).strip():
        raise UserError(f"no image was named; give the path of a {_KNOWN} file")
    file = expand(path)
    if file.is_dir():
        files = list_images(file)
        if len(files) > 1:
            raise UserError(f"the folder {file} holds {len(files)} images; name the one to use")
        return files[0]
    if not file.exists():
        raise UserError(f"there is no image at {file}; check the path")
    if not file.is_file():
        raise UserError(f"{file} is not a regular file; give the path of a {_KNOWN} file")
    return file


def _read_header(data: bytes, name: str, max_pixels: int) -> Image.Image:
    limit = f"more than the limit of {max_pixels / 1e6:g} megapixels; make it smaller"
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise UserError(f"the image {name} has {limit}") from error
    except Exception as error:
        raise UserError(f"{name} is not an image this program reads; give a {_KNOWN} file") from error
    if image.width * image.height > max_pixels:
        raise UserError(f"the image {name} has {image.width} x {image.height} pixels, {limit}")
    return image


def _rescaled(image: Image.Image) -> Image.Image:
    """Wide greyscale to 8 bits. 16 bits have a known range; 32-bit and float pictures are taken as they are
    when they fit 0..1 (float) or 0..255 or 0..65535, else stretched from their minimum to their maximum.
    """
    values = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;16"):
        low, high = 0.0, 65535.0
    elif low >= 0:
        ceilings = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        low, high = 0.0, next((c for c in ceilings if high <= c), high)
    grey = (values - low) / max(high - low, 1e-12) * 255
    return Image.fromarray(np.round(grey).astype(np.uint8)).convert("RGB")
