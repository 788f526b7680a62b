"""Labelled grids of pictures."""

import re
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

PAPER, INK, EMPTY = (255, 255, 255), (40, 40, 40), (240, 240, 240)
MARGIN, LINE = 6, 15


def _wrap(text: str, font, width: int) -> list[str]:
    """Lines of a text; one ends behind a space or what joins parts of names and paths, else where it is full."""
    lines: list[str] = []
    for piece in re.findall(r"[^\s_/\\-]*[_/\\-]\s?|[^\s_/\\-]+\s?", " ".join(text.split())):
        if lines and font.getlength((lines[-1] + piece).rstrip()) <= width:
            lines[-1] += piece
            continue
        lines.append("")
        for letter in piece:
            if lines[-1] and font.getlength((lines[-1] + letter).rstrip()) > width:
                lines.append("")
            lines[-1] += letter
    return [line.rstrip() for line in lines]


def picture_grid(
    rows: Sequence[Sequence[Image.Image | None]], row_labels: Sequence[str] = (), column_labels: Sequence[str] = (),
    cell: int = 128, label_width: int = 120,
) -> Image.Image:  # fmt: skip
    """Rows of pictures, all scaled to `cell` pixels, with labels to the left and on top; None leaves a cell empty."""
    font = ImageFont.load_default(12)
    columns = max(len(row) for row in rows)
    heads = [_wrap(label, font, cell) for label in column_labels]
    left = label_width + MARGIN if row_labels else MARGIN
    top = MARGIN + LINE * max((len(head) for head in heads), default=0)
    sheet = Image.new("RGB", (left + columns * (cell + MARGIN), top + len(rows) * (cell + MARGIN)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for column, head in enumerate(heads):
        for i, line in enumerate(head):
            draw.text((left + column * (cell + MARGIN), MARGIN // 2 + i * LINE), line, INK, font)
    for r, row in enumerate(rows):
        y = top + r * (cell + MARGIN)
        if row_labels:
            for i, line in enumerate(_wrap(row_labels[r], font, label_width)):
                draw.text((MARGIN, y + 4 + i * LINE), line, INK, font)
        for c, picture in enumerate(row):
            box = (left + c * (cell + MARGIN), y)
            tile = Image.new("RGB", (cell, cell), EMPTY) if picture is None else picture.resize((cell, cell))
            sheet.paste(tile, box)
    return sheet
