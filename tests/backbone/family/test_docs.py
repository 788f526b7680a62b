"""The page's example of a family runs and keeps what every family promises."""

import re
import runpy
from pathlib import Path

import pytest
import torch

from escdiff.backbone.family import FAMILIES, Residuals

DOCS = Path(__file__).parents[3] / "docs" / "families.md"


@pytest.fixture
def example():
    section = DOCS.read_text(encoding="utf-8").partition("## Add a family")[2]
    code, names = re.search(r"```python\n(.*?)```", section, re.DOTALL).group(1), {}
    assert len(code.splitlines()) <= 65
    exec(code, names)
    yield names
    del FAMILIES["toy"]


def test_the_documented_family(example):
    model, family, space, text = (example[name] for name in ("model", "family", "space", "text"))
    time = torch.tensor([500.0])
    assert family.name == "toy" and space.layer_names == ("blocks.0", "blocks.1", "blocks.2")
    assert not torch.equal(example["painted"], example["stock"])
    with family.attach(model, space):
        nothing = family.pack(model, space, text, Residuals.none(1, space, 8))
        assert torch.equal(model(example["picture"], nothing, timestep=time), example["stock"])

        hidden, own = example["picture"], family.enter(model, text)
        for index, block in enumerate(model.blocks):  # by hand
            read = own.clone()
            read[:, 1:3] += example["words"].values[:, index, 0]
            hidden = block(hidden, read)
    torch.testing.assert_close(hidden, example["painted"])
    assert torch.equal(model(example["picture"], text, timestep=time), example["stock"])


@pytest.mark.slow
def test_the_documented_sizes_are_the_scripts():
    script = runpy.run_path(str(DOCS.parents[1] / "benchmarks" / "families.py"))
    table = DOCS.read_text(encoding="utf-8")
    for name in ("SD 1.5", "PixArt-Sigma", "SD 3 medium"):
        assert "| " + " | ".join(script["row"](name).values()) + " |" in table
    assert "| " + " | ".join(script["training_row"]("SD 1.5").values()) + " |" in table
