"""Reading pictures that people give: every oddity is converted on purpose or refused in one sentence.

The header is checked before a pixel is decoded, so a decompression bomb costs nothing.
"""

import io
import logging
import os
import warnings
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from escdiff.data.colours import alpha_of, has_other_colours, to_rgb
from escdiff.data.limits import Limits
from escdiff.support.errors import TooLarge, UserError, reason_of

MAX_PIXELS, MAX_BYTES = Limits.max_pixels, Limits.max_bytes
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
MASK = ".mask.png"
ORIENTATION = 0x0112  # EXIF tag
_KNOWN = "JPEG, PNG, WebP, BMP, GIF, TIFF or PPM"

log = logging.getLogger(__name__)


def open_image(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open a picture, or the only picture of a folder, as RGB.

    EXIF rotation and an embedded colour profile are applied; transparency is composited on white (on grey where
    what is visible is nearly white); 16-bit, 32-bit and float pictures are rescaled, not cut off; CMYK, greyscale
    and palette pictures are converted; an animation gives its first frame (logged as a warning).

    Raises:
        UserError: the file is missing, unreadable, no picture, of a format not in `FORMATS`, truncated, or
            has more than `max_pixels` pixels.
    """
    return open_picture(path, max_pixels).rgb


def open_picture(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> "Picture":
    """As `open_image`, with its transparency."""
    file = _resolve(path)
    return _of_one_frame(decode_picture(read_file(file), str(file), max_pixels), str(file))


def read_file(file: Path, max_bytes: int = MAX_BYTES) -> bytes:
    """The bytes of a picture's file.

    Raises:
        UserError: it cannot be read, or has more than `max_bytes`.
    """
    try:
        size = file.stat().st_size
        if size > max_bytes:
            problem = f"the image {file} has {size / 1e6:.0f} MB, more than the limit of {max_bytes / 1e6:g} MB"
            raise TooLarge(f"{problem}; make it smaller")
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the image {file}: {error.strerror}; check its permissions") from error


def decode_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS, side: int | None = None) -> Image.Image:
    """Decode the bytes of a picture to RGB as `open_image` does.

    Args:
        name: what errors call it.
        side: pixels; a JPEG of which both sides are at least twice as long is decoded at a half, a quarter or an
            eighth, with no side below it.

    Raises:
        UserError: as `open_image`.
    """
    return _of_one_frame(decode_picture(data, name, max_pixels, side), name).rgb


@dataclass(frozen=True)
class Picture:
    """A decoded picture: as RGB, its transparency (mode L) if it has any, and what its file was like."""

    rgb: Image.Image
    alpha: Image.Image | None
    format: str
    mode: str
    frames: int
    turned: bool  # by its EXIF orientation
    profiled: bool  # by an embedded colour profile

    @property
    def plain(self) -> bool:
        """Whether the file's own bytes show everybody just `rgb`: nothing was converted, turned or left out."""
        changed = self.alpha is not None or self.frames > 1 or self.turned or self.profiled
        return self.mode == "RGB" and not changed


def decode_picture(data: bytes, name: str, max_pixels: int = MAX_PIXELS, side: int | None = None) -> Picture:
    """Decode the bytes of a picture; arguments as of `decode_image`.

    Raises:
        UserError: as `open_image`.
    """
    if not data:
        raise UserError(f"the image {name} is an empty file; give a picture ({_KNOWN})")
    with warnings.catch_warnings():
        # Pillow's own limits come after ours; its warnings would only add noise.
        warnings.simplefilter("ignore")
        image = _read_header(data, name, max_pixels)
        if side is not None:
            image.draft(None, (side, side))
        try:
            form, mode, turned = image.format, image.mode, image.getexif().get(ORIENTATION, 1) != 1
            frames = 1 if form == "MPO" else getattr(image, "n_frames", 1)
            image.load()
            image = ImageOps.exif_transpose(image)
            return Picture(to_rgb(image), alpha_of(image), form, mode, frames, turned, has_other_colours(image))
        # A damaged file can raise nearly anything from inside a codec: struct.error, zlib errors, ...
        except Exception as error:
            problem = f"the image {name} is truncated or damaged ({reason_of(error)})"
            raise UserError(f"{problem}; save or fetch it again") from error


def _of_one_frame(picture: Picture, name: str) -> Picture:
    if picture.frames > 1:
        log.warning("%s has %d frames; only the first is used", name, picture.frames)
    return picture


def list_images(folder: str | os.PathLike) -> list[Path]:
    """The pictures of a folder, sorted by name; a NAME.mask.png beside the picture NAME belongs to that.

    Raises:
        UserError: the folder is missing, not a folder, or holds no picture.
    """
    root = expand(folder)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give a folder of images ({_KNOWN})")
    files = sorted(f for f in root.iterdir() if f.suffix.lower() in SUFFIXES and not f.name.startswith("."))
    names = {f.name for f in files}
    files = [f for f in files if not is_mask(f.name, names)]
    if not files:
        raise UserError(f"the folder {root} holds no images; put {_KNOWN} files in it")
    return files


def is_mask(name: str, beside: Container[str]) -> bool:
    """Whether a file is the mask of a picture among the names `beside` it: NAME.mask.png of NAME.jpg."""
    return name.endswith(MASK) and any(name.removesuffix(MASK) + suffix in beside for suffix in SUFFIXES)


def distinct_names(files: Sequence[Path]) -> list[str]:
    """A name per file: its stem, and with its suffix where another one has the same stem, in whatever case."""
    stems = [file.stem.casefold() for file in files]
    return [file.name if stems.count(stem) > 1 else file.stem for file, stem in zip(files, stems, strict=True)]


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


def displayed_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels as a viewer shows the picture; read from its header alone.

    Raises:
        UserError: it is no picture, or larger than is read.
    """
    image = _read_header(data, "of a sample", MAX_PIXELS)
    return image.size[::-1] if image.getexif().get(ORIENTATION, 1) > 4 else image.size


def fit(image: Image.Image, height: int, width: int) -> Tensor:
    """RGB picture, or mask of mode L -> its middle, cut to the shape and resized: (C, height, width) uint8."""
    # Imported late: it takes 1.4 s of CPU, and the workers of `data_prep ingest` resize nothing.
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.v2 import functional as transforms

    factor = min(image.height // height, image.width // width)
    if image.mode == "L" and factor > 1:
        image = image.reduce(factor)  # as a JPEG is decoded smaller; twice as fast as one step
    levels = _levels(image)
    scale = min(levels.shape[1] / height, levels.shape[2] / width)
    levels = transforms.center_crop(levels, [max(round(height * scale), 1), max(round(width * scale), 1)])
    kind = InterpolationMode.BILINEAR if image.mode == "L" else InterpolationMode.BICUBIC
    return transforms.resize(levels, [height, width], interpolation=kind, antialias=True)


def to_pixels(image: Image.Image, size: int | None = None) -> Tensor:
    """RGB picture -> (3, H, W) float32 in [-1, 1]; with `size`, its centre square resized to size x size."""
    levels = _levels(image) if size is None else fit(image, size, size)
    return levels.float().div_(127.5).sub_(1)


def _levels(image: Image.Image) -> Tensor:
    """(C, H, W) uint8."""
    return torch.from_numpy(np.array(image).reshape(image.height, image.width, -1)).permute(2, 0, 1)


def to_mask(mask: Image.Image, size: int) -> Tensor:
    """A picture that is white on the object -> (1, size, size) in 0..1, of its centre square as in `to_pixels`."""
    fitted = ImageOps.fit(mask.convert("L"), (size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(fitted)).float()[None] / 255


def visible(alpha: Image.Image, size: int) -> Tensor:
    """A transparency (mode L) -> (1, size, size), 1 where its centre square is more opaque than not."""
    return (to_pixels(alpha.convert("RGB"), size)[:1] > 0).float()


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
        raise TooLarge(f"the image {name} has {limit}") from error
    except Exception as error:
        raise UserError(f"{name} is not an image this program reads; give a {_KNOWN} file") from error
    if image.width * image.height > max_pixels:
        raise TooLarge(f"the image {name} has {image.width} x {image.height} pixels, {limit}")
    return image
