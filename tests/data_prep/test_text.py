import pytest

from data_prep.text import decode_text, encoding_of
from escdiff.support.errors import UserError

TEXT = "a “mug” in a café, 5 € – naïve"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_what_editors_write_is_read(encoding, tmp_path):
    assert decode_text(TEXT.encode(encoding), "a.txt") == TEXT
    (tmp_path / "a.csv").write_bytes(TEXT.encode(encoding))
    if encoding != "cp1252":
        assert (tmp_path / "a.csv").read_text(encoding=encoding_of(tmp_path / "a.csv")) == TEXT


def test_big_endian_is_told_by_its_mark():
    assert decode_text(b"\xfe\xff" + TEXT.encode("utf-16-be"), "a.txt") == TEXT


@pytest.mark.parametrize(
    "data",
    ["кружка на столе".encode("cp1251"), "マグカップ".encode("shift-jis"), "马克杯".encode("gbk"),
     "a mug".encode("utf-16-le"), b"\xff\xd8\xff\xe0\0\x10JFIF", b"\xff\xfea"],
    ids=["cyrillic", "japanese", "chinese", "no mark", "a picture", "half a letter"],
)  # fmt: skip
def test_what_would_be_garbled_is_refused(data):
    with pytest.raises(UserError, match=r"a\.txt is in no encoding .* save it as UTF-8"):
        decode_text(data, "a.txt")
