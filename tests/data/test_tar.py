import io
import tarfile

import numpy as np
import pytest

from escdiff.data.tar import BLOCK, read_entries
from escdiff.support.errors import UserError


def pack(path, entries, **options):
    with tarfile.open(path, "w", **options) as tar:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


ENTRIES = [(f"{i:02d}.txt", bytes([65 + i]) * (700 + i)) for i in range(12)]


def tolerant(path):
    damage = []
    return list(read_entries(path, lambda offset, what: damage.append((offset, what)))), damage


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_sound_files_are_read_whole(tmp_path, form):
    more = [] if form == tarfile.USTAR_FORMAT else [("ü" * 90 + ".txt", b"long")]
    path = pack(tmp_path / "a.tar", ENTRIES + more, format=form)
    assert list(read_entries(path)) == ENTRIES + more


def test_a_damaged_header_costs_one_entry(tmp_path):
    path = pack(tmp_path / "a.tar", ENTRIES)
    data = bytearray(path.read_bytes())
    data[3 * 3 * BLOCK + 20] ^= 1  # each entry has a header and two blocks; this is the fourth's header
    path.write_bytes(data)
    assert data.index(b"03.txt") == 3 * BLOCK * 3
    with pytest.raises(UserError, match=r"a\.tar cannot be read to its end .* at byte 4608"):
        list(read_entries(path))
    found, damage = tolerant(path)
    assert found == ENTRIES[:3] + ENTRIES[4:] and [offset for offset, _ in damage] == [4608]


def test_a_cut_is_noticed_even_between_entries(tmp_path):
    whole = pack(tmp_path / "a.tar", ENTRIES).read_bytes()
    for size, left in ((5 * 3 * BLOCK, 5), (5 * 3 * BLOCK + 100, 5), (5 * 3 * BLOCK + 900, 5), (0, 0)):
        (tmp_path / "cut.tar").write_bytes(whole[:size])
        found, damage = tolerant(tmp_path / "cut.tar")
        assert found == ENTRIES[:left] and damage, size
        with pytest.raises(UserError):
            list(read_entries(tmp_path / "cut.tar"))


def test_joined_files_are_read_on_and_noted(tmp_path):
    both = pack(tmp_path / "a.tar", ENTRIES[:2]).read_bytes() + pack(tmp_path / "b.tar", ENTRIES[2:]).read_bytes()
    (tmp_path / "c.tar").write_bytes(both)
    found, damage = tolerant(tmp_path / "c.tar")
    assert found == ENTRIES and len(damage) == 1


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    info = tarfile.TarInfo(name.decode())
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157] = size, kind
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


def test_hostile_sizes_neither_loop_nor_fill_the_memory(tmp_path):
    sound = pack(tmp_path / "a.tar", ENTRIES).read_bytes()
    negative = b"\xff" * 10 + b"\xfc\x00"  # base 256, two's complement: minus 1024
    huge = b"\x80" + b"\x7f" * 11
    for kind in (b"0", b"x", b"L", b"g", b"S", b"5"):
        for size in (negative, huge, b"77777777777\0", b"00000000000\0"):
            (tmp_path / "h.tar").write_bytes(header(b"evil.txt", size, kind) + sound)
            found, _ = tolerant(tmp_path / "h.tar")
            assert [e for e in found if e[0] != "evil.txt"][-11:] == ENTRIES[-11:], (kind, size)


def test_too_large_entries_and_links_are_not_read(tmp_path):
    path = pack(tmp_path / "a.tar", [*ENTRIES, ("big.txt", b"x" * 5000)])
    damage = []
    assert list(read_entries(path, lambda *what: damage.append(what), max_bytes=2000)) == ENTRIES
    assert "5000 bytes" in damage[0][1]
    with tarfile.open(tmp_path / "l.tar", "w") as tar:
        link = tarfile.TarInfo("a.txt")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    assert list(read_entries(tmp_path / "l.tar")) == []


def test_packed_and_foreign_files_are_refused(tmp_path):
    pack(tmp_path / "a.tar", ENTRIES)
    with tarfile.open(tmp_path / "z.tar", "w:gz") as tar:
        tar.add(tmp_path / "a.tar", "a.txt")
    for data in ((tmp_path / "z.tar").read_bytes(), b"x" * 5000):
        (tmp_path / "x.tar").write_bytes(data)
        with pytest.raises(UserError, match=r"x\.tar cannot be read"):
            list(read_entries(tmp_path / "x.tar"))
    with pytest.raises(UserError, match="No such file"):
        list(read_entries(tmp_path / "absent.tar"))


def test_any_flipped_bit_is_noticed_or_harmless(tmp_path):
    """A flip in a header or behind the entries is noticed; inside an entry the hash of the index tells."""
    whole = pack(tmp_path / "a.tar", ENTRIES).read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(0, len(whole), 150):
        data = bytearray(whole)
        data[place] ^= 1 << rng.integers(8)
        (tmp_path / "f.tar").write_bytes(data)
        found, damage = tolerant(tmp_path / "f.tar")
        block = place // BLOCK
        if block % 3 == 0 and block < 36:
            assert damage and len(found) == 11, place
        elif block >= 36:
            assert damage and found == ENTRIES
        else:
            assert [name for name, _ in found] == [name for name, _ in ENTRIES]
