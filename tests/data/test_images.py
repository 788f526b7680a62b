import io
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from escdiff.data import images
from escdiff.data.images import decode_image, list_images, open_image, to_pil, to_pixels
from escdiff.errors import UserError


def save(image: Image.Image, path, **options):
    image.save(path, **options)
    return path


def noise(size=(20, 30)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))


def test_missing_empty_unknown_and_damaged_files_are_refused(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture at all")
    whole = save(noise((200, 200)), tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    png = save(noise(), tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(png[: len(png) // 2])
    (tmp_path / "nothing").mkdir()
    cases = {
        "absent.png": "no image at", "empty.png": "empty", "text.png": "not an image", "cut.jpg": "truncated",
        "cut.png": "truncated", "nothing": "no images", "\0": "no image at",
    }  # fmt: skip
    for name, words in cases.items():
        with pytest.raises(UserError, match=words) as caught:
            open_image(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no image was named"):
        open_image("  ")


def test_folder_stands_for_its_only_picture(tmp_path):
    save(noise(), tmp_path / "a.png")
    assert open_image(tmp_path).size == (30, 20)
    save(noise(), tmp_path / "b.png")
    with pytest.raises(UserError, match="2 images"):
        open_image(tmp_path)
    assert [f.name for f in list_images(tmp_path)] == ["a.png", "b.png"]


def test_formats_off_the_list_are_refused(tmp_path):
    for name in ("a.ico", "a.pcx", "a.eps"):
        save(noise(), tmp_path / name)
        with pytest.raises(UserError, match="not an image this program reads"):
            open_image(tmp_path / name)


def test_bomb_is_refused_before_decoding(tmp_path, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    for side in (9000, 14000):  # above our limit; above Pillow's warning; the larger above Pillow's error
        data = _huge_png(side)
        with pytest.raises(UserError, match="megapixels"):
            decode_image(data, "bomb")
    with pytest.raises(UserError, match="megapixels"):
        decode_image(_huge_png(100), "small", max_pixels=9999)


def _huge_png(side: int) -> bytes:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_wide_greyscale_is_rescaled_and_not_cut_off(tmp_path):
    ramp = np.linspace(0, 65535, 256).reshape(16, 16)
    wanted = np.arange(256).reshape(16, 16)
    sixteen = save(Image.fromarray(ramp.astype(np.uint16)), tmp_path / "a.png")
    as_int = save(Image.fromarray(ramp.astype(np.int32)), tmp_path / "b.tif")
    as_float = save(Image.fromarray((ramp / 65535).astype(np.float32)), tmp_path / "c.tif")
    negative = save(Image.fromarray((ramp - 40000).astype(np.float32)), tmp_path / "d.tif")
    for path in (sixteen, as_int, as_float, negative):
        image = open_image(path)
        assert image.mode == "RGB"
        assert np.abs(np.asarray(image)[..., 0].astype(int) - wanted).max() <= 1, path
    broken = np.array([[np.nan, np.inf], [0.0, 1.0]], np.float32)
    assert np.asarray(open_image(save(Image.fromarray(broken), tmp_path / "e.tif"))).max() == 255


def test_transparency_is_composited_on_white(tmp_path):
    clear_red = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert open_image(save(clear_red, tmp_path / "a.png")).getpixel((0, 0)) == (255, 255, 255)
    half = Image.new("LA", (4, 4), (0, 128))
    assert open_image(save(half, tmp_path / "b.png")).getpixel((0, 0)) == (127, 127, 127)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([255, 0, 0, 0, 0, 255])
    assert open_image(save(palette, tmp_path / "c.gif", transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    assert open_image(save(palette, tmp_path / "d.png")).getpixel((0, 0)) == (255, 0, 0)
    keyed = Image.new("RGB", (4, 4), (1, 2, 3))
    assert open_image(save(keyed, tmp_path / "e.png", transparency=(1, 2, 3))).getpixel((0, 0)) == (255,) * 3


def test_cmyk_greyscale_and_bilevel_become_rgb(tmp_path):
    cyan = open_image(save(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), tmp_path / "a.jpg")).getpixel((4, 4))
    assert cyan[0] < 40 and cyan[2] > 150
    assert open_image(save(Image.new("L", (4, 4), 77), tmp_path / "b.png")).getpixel((0, 0)) == (77, 77, 77)
    assert open_image(save(Image.new("1", (4, 4), 1), tmp_path / "c.png")).getpixel((0, 0)) == (255, 255, 255)


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_image(save(noise((20, 30)), tmp_path / "a.jpg", exif=exif)).size == (20, 30)


def test_animation_gives_its_first_frame_and_says_so(tmp_path, caplog):
    first, second = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    path = save(first, tmp_path / "a.gif", save_all=True, append_images=[second])
    with caplog.at_level(logging.WARNING):
        assert open_image(path).getpixel((0, 0)) == (255, 0, 0)
    assert "2 frames" in caplog.text


def test_paths_as_persons_type_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save(noise(), tmp_path / "my mug.png")
    for typed in ("~/my mug.png", f" {tmp_path}/my mug.png\n", f"'{tmp_path}/my mug.png'", "~/my\\ mug.png"):
        assert open_image(typed).size == (30, 20)


def test_damaged_pictures_raise_only_user_errors():
    rng = np.random.default_rng(1)
    for form in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"):
        buffer = io.BytesIO()
        noise().save(buffer, form)
        for _ in range(40):
            data = bytearray(buffer.getvalue())
            for _ in range(rng.integers(1, 6)):
                data[rng.integers(len(data))] ^= 1 << rng.integers(8)
            try:
                image = decode_image(bytes(data[: rng.integers(1, len(data) + 1)]), "fuzzed")
            except UserError:
                continue
            assert image.mode == "RGB"


def test_pixels_and_back():
    image = noise((16, 16))
    pixels = to_pixels(image)
    assert pixels.shape == (3, 16, 16) and pixels.dtype == torch.float32
    assert pixels.min() >= -1 and pixels.max() <= 1
    assert np.array_equal(np.asarray(to_pil(pixels)), np.asarray(image))
    assert to_pixels(noise((20, 30)), 8).shape == (3, 8, 8)
    assert np.asarray(to_pil(torch.full((3, 2, 2), 7.0))).max() == 255


def test_unreadable_file_is_refused(tmp_path, monkeypatch):
    path = save(noise(), tmp_path / "a.png")

    def refuse(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(images.Path, "read_bytes", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        open_image(path)
