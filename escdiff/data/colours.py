"""From a picture as its file stores it to the colours that a viewer shows: profile, transparency, wide greys."""

import functools
import io

import numpy as np
from PIL import Image, ImageCms

WHITE, GREY = (255, 255, 255), (128, 128, 128)
PALE = 48  # mean distance from white, of 255, under which what is visible needs another ground
SAME = 2  # levels in which a profile's colours may differ from sRGB to count as sRGB
_MODES = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # a profile's colour space -> Pillow's mode


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a decoded picture of any mode to 8-bit RGB without saturating and without invented colours.

    Colours go through the embedded ICC profile to sRGB. Transparency is composited on white, on grey where what is
    visible is nearly white itself.
    """
    alpha = alpha_of(image)
    colours = _opaque(image)
    return (
        colours
        if alpha is None
        else Image.composite(colours, Image.new("RGB", image.size, _ground(colours, alpha)), alpha)
    )


def alpha_of(image: Image.Image) -> Image.Image | None:
    """The transparency (mode L), or None where everything is opaque."""
    if not image.has_transparency_data:
        return None
    alpha = image.convert("RGBA").getchannel("A")
    return alpha if alpha.getextrema()[0] < 255 else None


def has_other_colours(image: Image.Image) -> bool:
    """Whether an embedded profile shows other colours than the stored numbers say as sRGB."""
    return _transform_of(image) is not None


def _opaque(image: Image.Image) -> Image.Image:
    """RGB without regard to transparency."""
    transform = _transform_of(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _rescaled(image)
    elif image.has_transparency_data:
        image = image.convert("RGBA").convert("RGB")
    if transform is None and image.mode != "RGB":
        image = image.convert("RGB")
        image.info.pop("icc_profile", None)  # it spoke of other numbers
    if transform is None:
        return image
    return transform.apply(image.convert(transform.input_mode))


def _transform_of(image: Image.Image) -> ImageCms.ImageCmsTransform | None:
    profile = image.info.get("icc_profile")
    return _transform(profile, image.mode) if profile else None


@functools.lru_cache(64)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile's colours to sRGB; None where it changes nothing, cannot be read or is of another kind of picture.

    Viewers ignore such profiles, too.
    """
    grey, ink = mode in ("1", "L", "LA", "La", "F") or mode.startswith("I"), mode == "CMYK"
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        stored = _MODES.get(source.profile.xcolor_space)
        if stored is None or ink != (stored == "CMYK") or (stored == "L" and not grey):
            return None
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), stored, "RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None
    return None if stored != "CMYK" and _changes_nothing(transform, stored) else transform


def _changes_nothing(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    levels = np.arange(0, 256, 15, np.uint8)
    every = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3) if mode == "RGB" else levels[None]
    probe = Image.fromarray(every)
    shown = np.asarray(transform.apply(probe), int)
    return bool(np.abs(shown - np.asarray(probe.convert("RGB"), int)).max() <= SAME)


def _ground(colours: Image.Image, alpha: Image.Image) -> tuple[int, int, int]:
    """Choose the colour behind a transparent picture: white icons on white would be a blank sheet."""
    weight = np.asarray(alpha, float)
    contrast = np.abs(255.0 - np.asarray(colours.convert("L"), float))
    seen = weight.sum()
    return GREY if seen and (weight * contrast).sum() < PALE * seen else WHITE


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
    return Image.fromarray(np.round(grey).astype(np.uint8))
