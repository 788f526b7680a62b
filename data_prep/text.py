"""Text files that people and their programs wrote: decoded by what they say or show, or refused, never garbled."""

import codecs
import re
from contextlib import suppress
from pathlib import Path

from escdiff.support.errors import UserError

# The longer mark first: UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
# Letters and signs of Western European languages in cp1252, alone or in twos, and ASCII.
_WESTERN = (
    r"\x80\x85\x8a\x8c\x8e\x91-\x97\x99\x9a\x9c\x9e-\xa1\xa3\xa7\xa9\xab\xae\xb0-\xb4\xb7\xbb-\xd6\xd8-\xf6\xf8-\xff"
)
_CP1252 = re.compile(rf"(?:[\x01-\x7f]|(?<![\x80-\xff])[{_WESTERN}]{{1,2}}(?![\x80-\xff]))*".encode("ascii"))


def decode_text(data: bytes, name: str) -> str:
    """The text of a file: UTF-8, with or without a byte order mark, or UTF-16 or -32 with one, or Windows' cp1252.

    cp1252 is taken where Western letters outside ASCII stand alone or in twos, as in "café"; whole words of them are
    of another encoding, which nothing names.

    Raises:
        UserError: none of these; `name` is what it calls the file.
    """
    encoding, text = marked_encoding(data), "\0"
    for candidate in [encoding] if encoding else ["utf-8", *(["cp1252"] if _CP1252.fullmatch(data) else [])]:
        with suppress(UnicodeDecodeError):
            text = data.decode(candidate)
            break
    if "\0" in text:
        raise UserError(f"the text {name} is in no encoding that is known here; save it as UTF-8")
    return text


def marked_encoding(data: bytes) -> str | None:
    """The encoding that a byte order mark at the beginning names."""
    return next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)


def encoding_of(path: Path) -> str:
    """In which encoding to open a text file that is read piece by piece: as its mark says, else UTF-8."""
    with open(path, "rb") as file:
        return marked_encoding(file.read(4)) or "utf-8"
