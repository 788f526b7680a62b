"""Pictures read at the size that is wanted."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from escdiff.data.pictures import decode_image, displayed_size, fit, to_pixels


def picture(width, height, form="JPEG", **options) -> bytes:
    ramp = np.linspace(0, 255, width * height * 3).reshape(height, width, 3).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(("side", "size"), [(None, (400, 300)), (301, (400, 300)), (150, (200, 150)), (60, (100, 75))])
def test_a_jpeg_is_decoded_no_smaller_than_what_is_wanted(side, size):
    image = decode_image(picture(400, 300), "a", side=side)
    assert image.size == size
    whole = to_pixels(decode_image(picture(400, 300), "a"), 32)
    assert (to_pixels(image, 32) - whole).abs().mean() < 0.02


def test_other_formats_are_read_whole():
    assert decode_image(picture(400, 300, "PNG"), "a", side=60).size == (400, 300)


def test_fitting_cuts_the_middle_as_pillow_does():
    image = decode_image(picture(41, 30, "PNG"), "a")
    for height, width in ((16, 16), (20, 12), (60, 60)):
        wanted = torch.from_numpy(np.asarray(ImageOps.fit(image, (width, height))).copy()).permute(2, 0, 1)
        assert (fit(image, height, width).int() - wanted.int()).abs().float().mean() < 4
    assert fit(image.convert("L"), 5, 7).shape == (1, 5, 7)
    mask = Image.new("L", (120, 90))
    mask.paste(255, (30, 20, 80, 70))
    small = torch.from_numpy(np.asarray(ImageOps.fit(mask, (32, 32), Image.Resampling.BILINEAR)).copy())[None]
    assert ((fit(mask, 32, 32) > 127) != (small > 127)).float().mean() < 0.02
    assert fit(Image.new("RGB", (1, 90)), 4, 8).shape == (3, 4, 8)


def test_the_displayed_size_minds_the_orientation():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert displayed_size(picture(40, 30)) == (40, 30) and displayed_size(picture(40, 30, exif=exif)) == (30, 40)
