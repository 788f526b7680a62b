"""The layer study of any backbone, on tiny stock pipelines."""

import json

import pytest
import torch
from transformer_pipelines import PIPELINES
from typer.testing import CliRunner

from escdiff.backbone.transformer import TransformerBackbone
from escdiff.evaluation.__main__ import app
from escdiff.evaluation.metrics.features import load_clip
from escdiff.evaluation.studies import lent_layers
from escdiff.evaluation.studies.lent_layers import alike, lenders, split_texts
from escdiff.pipelines.generate import generate
from escdiff.support.errors import UserError


def test_who_lends_to_whom():
    assert lenders(4, 2).tolist() == [2, 3, 2, 3]
    assert lenders(8, 2).tolist() == [2, 3, 2, 3, 6, 7, 6, 7]  # guidance: each half its own


def small(name: str, monkeypatch) -> TransformerBackbone:
    backbone = TransformerBackbone(PIPELINES[name](), f"tiny-{name}")
    backbone.prompts.given["max_sequence_length"] = 64
    monkeypatch.setattr(lent_layers, "WORDS", {"family": ("mug", "dog"), "color": ("red", "beach")})
    return backbone


def test_words_are_equally_long(monkeypatch):
    backbone = small("pixart", monkeypatch)
    words = ["mug", "dog", "on", "photo", "zebra"]
    assert alike(backbone, words) == [w for w in words if len(backbone.prompts.word_embedding(w)) == 1]


@pytest.mark.parametrize("name", ["pixart", "flux"])  # cross-attention, a stream
def test_first_and_last_number_are_the_two_descriptions(name, monkeypatch):
    backbone, painted = small(name, monkeypatch), []

    def paint(backbone, texts, **options):
        painted.append((texts, generate(backbone, texts, **options, height=64, width=64)))
        return painted[-1][1]

    monkeypatch.setattr(lent_layers, "generate", paint)
    split = split_texts(backbone, load_clip("mini"), 2, seed=0, steps=1, guidance=1.0)
    layers = backbone.p_plus().num_layers
    assert split.order == list(range(layers)) and split.inner[0] == 0 and split.inner[-1] == layers
    assert {len(found) for found in split.nearer.values()} == {len(split.inner)} and not split.shown
    (texts, first), (again, last) = painted[0], painted[-1]
    assert texts == again and len(texts) == 4
    assert [last[i].tobytes() for i in (2, 3)] == [first[i].tobytes() for i in (2, 3)]  # who lends is painted as ever
    assert last[0].tobytes() != first[0].tobytes()
    if name == "pixart":  # all layers read the second description: its picture, from the same noise
        assert last[0].tobytes() == first[2].tobytes()


@pytest.mark.slow
def test_the_door_takes_a_transformer_and_needs_a_clip(tmp_path):
    PIPELINES["sana"]().save_pretrained(tmp_path / "sana")
    where = {"--out": tmp_path / "out", "--backbone": tmp_path / "sana", "--pairs": 1, "--steps": 1}
    call = ["layers", *(str(part) for pair in where.items() for part in pair)]
    refused = CliRunner().invoke(app, call)
    assert isinstance(refused.exception, UserError) and "give --clip" in str(refused.exception)
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(app, [*call, "--clip", "mini", "--device", "cpu"])
    assert done.exit_code == 0, done.exception
    found = json.loads((tmp_path / "out" / "layers.json").read_text(encoding="utf-8"))
    assert len(found["nearer"]["color"]) == len(found["inner"]) and found["attention"] == []
    assert (tmp_path / "out" / "layers.png").stat().st_size > 5000
    assert torch.isfinite(torch.tensor([one["mean"] for one in found["nearer"]["family"]])).all()
