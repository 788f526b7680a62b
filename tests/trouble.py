"""A folder of pictures as the world keeps them: every oddity once, and what is damaged or hostile."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

GOOD = (
    "animated.gif", "bilevel.png", "cmyk.jpg", "float.tif", "grey.png", "keyed.png", "palette.gif", "plain.jpg",
    "plain.png", "rgba.png", "sixteen.png", "turned.jpg", "webp.webp",
)  # fmt: skip
BAD = ("bomb.png", "cut.jpg", "cut.png", "empty.png", "lying.jpg", "text.png")


def noise(width: int = 60, height: int = 48, seed: int = 0) -> Image.Image:
    """Smooth random colours, so that JPEG keeps them."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def bomb(side: int = 14000) -> bytes:
    """A PNG of a few bytes that claims `side` x `side` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def make_trouble(folder: Path) -> Path:
    """Write all of `GOOD` and `BAD`, a caption, facts and a mask beside plain.png, and things that are no pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    picture = noise()
    alpha = Image.new("L", picture.size, 0)
    alpha.paste(255, (15, 10, 45, 40))
    rgba = picture.copy()
    rgba.putalpha(alpha)
    exif = Image.Exif()
    exif[0x0112] = 6
    ramp = np.linspace(0, 65535, 60 * 48).reshape(48, 60)
    jpeg, png = encoded(picture, "JPEG"), encoded(picture, "PNG")
    files = {
        "animated.gif": encoded(picture, "GIF", save_all=True, append_images=[noise(seed=1)]),
        "bilevel.png": encoded(picture.convert("1"), "PNG"), "cmyk.jpg": encoded(picture.convert("CMYK"), "JPEG"),
        "float.tif": encoded(Image.fromarray((ramp / 65535).astype(np.float32)), "TIFF"),
        "grey.png": encoded(picture.convert("L"), "PNG"),
        "keyed.png": encoded(picture, "PNG", transparency=picture.getpixel((0, 0))),
        "palette.gif": encoded(picture.convert("P"), "GIF"), "plain.jpg": jpeg, "plain.png": png,
        "rgba.png": encoded(rgba, "PNG"), "sixteen.png": encoded(Image.fromarray(ramp.astype(np.uint16)), "PNG"),
        "turned.jpg": encoded(picture, "JPEG", exif=exif), "webp.webp": encoded(picture, "WEBP"),
        "bomb.png": bomb(), "cut.jpg": jpeg[:-200], "cut.png": png[: len(png) // 2], "empty.png": b"",
        "lying.jpg": b"GIF89a" + jpeg, "text.png": b"no picture at all",
        "plain.txt": b"a photo of a blue vase\n", "plain.json": b'{"category": "vase", "licence": "CC0-1.0"}',
        "plain.mask.png": encoded(alpha, "PNG"), "notes.md": b"# nothing", "raw.heic": b"\0\0",
    }  # fmt: skip
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder
