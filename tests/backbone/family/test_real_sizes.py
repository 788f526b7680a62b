"""The real models' layers and sizes, on torch's meta device."""

import runpy
from pathlib import Path

import pytest

from escdiff.backbone.family import family_of

SCRIPT = runpy.run_path(str(Path(__file__).parents[3] / "benchmarks" / "families.py"))
# layers, first and last of them, width of the text and in the layers, parameters in billions as published
KNOWN = {
    "SD 1.5": (16, "down_blocks.0", "up_blocks.3", 768, 768, 0.86),
    "SDXL": (11, "down_blocks.1", "up_blocks.1", 2048, 2048, 2.57),
    "PixArt-Sigma": (28, "transformer_blocks.0", "transformer_blocks.27", 4096, 1152, 0.61),
    "Sana 1.6B": (20, "transformer_blocks.0", "transformer_blocks.19", 2304, 2240, 1.6),
    "SD 3 medium": (24, "transformer_blocks.0", "transformer_blocks.23", 4096, 1536, 2.03),
    "SD 3.5 medium": (24, "transformer_blocks.0", "transformer_blocks.23", 4096, 1536, 2.24),
    "SD 3.5 large": (38, "transformer_blocks.0", "transformer_blocks.37", 4096, 2432, 8.06),
    "FLUX.1-dev": (57, "transformer_blocks.0", "single_transformer_blocks.37", 4096, 3072, 11.9),
    "Qwen-Image": (60, "transformer_blocks.0", "transformer_blocks.59", 3584, 3072, 20.4),
}


@pytest.mark.parametrize("name", KNOWN)
def test_layers_and_widths(name):
    count, first, last, text_width, layer_width, billions = KNOWN[name]
    model = SCRIPT["REAL"][name].build()
    family = family_of(model)
    cells = family.space(model).cells
    assert len(cells) == count and cells[0][0].startswith(first) and cells[-1][-1].startswith(last)
    assert (family.text_width(model), family.layer_width(model)) == (text_width, layer_width)
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, rel=0.01)


def test_the_table_has_them_all():
    assert set(KNOWN) == set(SCRIPT["REAL"])
    line = SCRIPT["row"]("SD 1.5")
    assert line["one vector per layer"] == "25 KB" and line["layers"] == "16"


def test_operations_are_those_of_the_formula():
    """FLUX by hand: both kinds of block have 12 d^2 weights per token; attention takes 4 n^2 d."""
    real = SCRIPT["REAL"]["FLUX.1-dev"]
    width, tokens, blocks = 3072, 4096 + 512, 57
    expected = blocks * (2 * 12 * width**2 * tokens + 4 * tokens**2 * width)
    assert SCRIPT["operations"](real, real.build()) == pytest.approx(expected, rel=0.01)
