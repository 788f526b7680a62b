from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep import sheets

DOCS = Path(__file__).parents[2] / "docs"


def test_the_docs_show_every_sheet_and_none_is_large():
    page = (DOCS / "world.md").read_text(encoding="utf-8")
    for name in sheets.SHEETS:
        path = DOCS / "world" / f"{name}.png"
        assert path.stat().st_size < 400_000 and f"(world/{name}.png)" in page
    assert len(list((DOCS / "world").glob("*.png"))) == len(sheets.SHEETS)


@pytest.mark.parametrize("name", ["edits", "figures"])
def test_a_sheet_is_drawn_from_its_seed(name, tmp_path, monkeypatch):
    draw = sheets.SHEETS[name]

    def few(rng):
        rows, labels, heads, *size = draw(rng)
        return [row[:2] for row in rows[:2]], labels[:2], heads[:2], *size

    monkeypatch.setattr(sheets, "SHEETS", {name: few})
    first, again = (sheets.make_sheets(tmp_path / str(i), seed=3)[0] for i in range(2))
    assert first.read_bytes() == again.read_bytes()
    assert np.asarray(Image.open(first).convert("RGB")).std() > 20
