"""Reading pictures that people give: every oddity is converted on purpose or refused in one sentence.

The header is checked before a pixel is decoded, so a decompression bomb costs nothing.
"""

import io
import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from escdiff.data.limits import Limits
from escdiff.errors import UserError

MAX_PIXELS, MAX_BYTES = Limits.max_pixels, Limits.max_bytes
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
ORIENTATION = 0x0112  # EXIF tag
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
    return decode_image(read_file(file), str(file), max_pixels)


def read_file(file: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a picture's file.

    Raises:
        UserError: it cannot be read, or has more than `max_bytes`.
    """
    try:
        size = file.stat().st_size
        if size > max_bytes:
            what = f"the image {file} has {size / 1e6:.0f} MB, more than the limit of {max_bytes / 1e6:g} MB"
            raise UserError(f"{what}; make it smaller")
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the image {file}: {error.strerror}; check its permissions") from error


def decode_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decode the bytes of a picture to RGB as `open_image` does; `name` is what errors call it.

    Raises:
        UserError: as `open_image`.
    """
    picture = decode_picture(data, name, max_pixels)
    if picture.frames > 1:
        log.warning("%s has %d frames; only the first is used", name, picture.frames)
    return picture.rgb


@dataclass(frozen=True)
class Picture:
    """A decoded picture: as RGB, its transparency (mode L) if it has any, and what its file was like."""

    rgb: Image.Image
    alpha: Image.Image | None
    format: str
    mode: str
    frames: int
    turned: bool  # by its EXIF orientation

    @property
    def plain(self) -> bool:
        """Whether the file's own bytes show everybody just `rgb`: nothing was converted, turned or left out."""
        return self.mode == "RGB" and self.alpha is None and self.frames == 1 and not self.turned


def decode_picture(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode the bytes of a picture; `name` is what errors call it.

    Raises:
        UserError: as `open_image`.
    """
    if not data:
        raise UserError(f"the image {name} is an empty file; give a picture ({_KNOWN})")
    with warnings.catch_warnings():
        # Pillow's own limits come after ours; its warnings would only add noise.
        warnings.simplefilter("ignore")
        image = _read_header(data, name, max_pixels)
        try:
            form, mode, turned = image.format, image.mode, image.getexif().get(ORIENTATION, 1) != 1
            frames = 1 if form == "MPO" else getattr(image, "n_frames", 1)
            image.load()
            image = ImageOps.exif_transpose(image)
            return Picture(to_rgb(image), _alpha(image), form, mode, frames, turned)
        # A damaged file can raise nearly anything from inside a codec: struct.error, zlib errors, ...
        except Exception as error:
            what = f"the image {name} is truncated or damaged ({_one_line(error)})"
            raise UserError(f"{what}; save or fetch it again") from error


def _alpha(image: Image.Image) -> Image.Image | None:
    if not image.has_transparency_data:
        return None
    alpha = image.convert("RGBA").getchannel("A")
    return alpha if alpha.getextrema()[0] < 255 else None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


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
