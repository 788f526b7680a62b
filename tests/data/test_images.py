import io
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from escdiff.data import pictures as images
from escdiff.data.pictures import decode_image, decode_picture, list_images, open_image, to_pil, to_pixels
from escdiff.support.errors import UserError


def save(image: Image.Image, path, **options):
    image.save(path, **options)
    return path


def noise(size=(20, 30)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))


def test_missing_empty_unknown_and_damaged_files_are_refused(tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("no picture at all", encoding="utf-8")
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


def adobe_rgb() -> bytes:
    """A profile of wide primaries and gamma 2.2, as cameras embed."""
    primaries = (0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)
    return _profile(b"RGB ", b"XYZ ", dict(zip((b"r", b"g", b"b"), primaries, strict=True)), 2.2)


def _profile(space: bytes, connection: bytes, primaries: dict, gamma: float) -> bytes:
    """A display profile of the International Color Consortium, version 2.4."""
    import struct

    fixed = lambda value: struct.pack(">i", round(value * 65536))  # noqa: E731
    xyz = lambda values: b"XYZ \0\0\0\0" + b"".join(map(fixed, values))  # noqa: E731
    curve = b"curv\0\0\0\0" + struct.pack(">IHH", 1, round(gamma * 256), 0)
    tags = [(b"desc", b"desc\0\0\0\0\0\0\0\5test\0" + b"\0" * 79), (b"cprt", b"text\0\0\0\0none\0\0\0\0")]
    tags += [(b"wtpt", xyz((0.9642, 1, 0.8249)))]
    tags += [(name + b"XYZ", xyz(values)) for name, values in primaries.items()]
    tags += [(name + b"TRC", curve) for name in primaries or (b"k",)]
    table, data, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, body in tags:
        table += name + struct.pack(">II", start + len(data), len(body))
        data += body + b"\0" * (-len(body) % 4)
    header = struct.pack(">IIIII", start + len(data), 0, 0x02400000, 0, 0)[:12] + b"mntr" + space + connection
    header += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + b"\0" * 28
    header += fixed(0.9642) + fixed(1) + fixed(0.8249)
    return header.ljust(128, b"\0") + table + data


def test_an_embedded_profile_is_applied(tmp_path):
    """What every viewer shows as (230, 20, 20) is stored as other numbers in a wide colour space."""
    from PIL import ImageCms

    wide = ImageCms.ImageCmsProfile(io.BytesIO(adobe_rgb()))
    seen = Image.new("RGB", (8, 8), (230, 20, 20))
    stored = ImageCms.profileToProfile(seen, ImageCms.createProfile("sRGB"), wide)
    assert stored.getpixel((0, 0))[0] < 210
    clear = stored.copy()
    clear.putalpha(Image.new("L", (8, 8), 200))
    for name, picture in (("a.png", stored), ("b.jpg", stored), ("c.tif", stored), ("d.png", clear)):
        path = save(picture, tmp_path / name, icc_profile=adobe_rgb())
        found = decode_image(path.read_bytes(), name) if name != "d.png" else _unclear(path)
        assert np.abs(np.subtract(found.getpixel((4, 4)), (230, 20, 20))).max() <= 6, name
        assert decode_picture(path.read_bytes(), name).plain is False
    again = decode_image(save(open_image(tmp_path / "a.png"), tmp_path / "e.png").read_bytes(), "again")
    assert np.abs(np.subtract(again.getpixel((4, 4)), (230, 20, 20))).max() <= 6  # applied once, not twice


def _unclear(path) -> Image.Image:
    """The visible colours of a half transparent picture that was composited on white."""
    shown = np.asarray(open_image(path), float)
    return Image.fromarray(np.round((shown - 255 * (1 - 200 / 255)) / (200 / 255)).clip(0, 255).astype(np.uint8))


def test_grey_profiles_are_applied_and_others_change_nothing(tmp_path):
    from PIL import ImageCms

    linear = _profile(b"GRAY", b"XYZ ", {}, 1.0)
    dark = save(Image.new("L", (8, 8), 55), tmp_path / "a.png", icc_profile=linear)
    assert open_image(dark).getpixel((0, 0))[0] > 110  # 0.216 of the light is level 128 to a viewer
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for number, profile in enumerate((srgb, b"no profile", linear, adobe_rgb()[:200])):
        path = save(noise(), tmp_path / f"{number}.png", icc_profile=profile)
        assert np.array_equal(np.asarray(open_image(path)), np.asarray(noise()))
        assert decode_picture(path.read_bytes(), "x").plain


def test_white_on_transparency_gets_a_ground_that_shows_it(tmp_path):
    icon = Image.new("RGBA", (40, 40), (255, 255, 255, 0))
    icon.paste((255, 255, 255, 255), (10, 10, 30, 30))
    shown = open_image(save(icon, tmp_path / "a.png"))
    assert shown.getpixel((20, 20)) == (255, 255, 255) and shown.getpixel((0, 0)) == (128, 128, 128)
    icon.paste((200, 30, 30, 255), (10, 10, 30, 30))
    assert open_image(save(icon, tmp_path / "b.png")).getpixel((0, 0)) == (255, 255, 255)
    nothing = save(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), tmp_path / "c.png")
    assert open_image(nothing).getpixel((0, 0)) == (255, 255, 255)


def test_a_mask_beside_its_picture_is_no_picture(tmp_path):
    for name in ("a.jpg", "a.mask.png", "b.mask.png", "a.png"):
        save(noise(), tmp_path / name)
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "a.png", "b.mask.png"]
