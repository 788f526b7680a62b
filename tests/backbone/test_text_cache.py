"""Texts of ordinary words on disk."""

import pytest
import torch
from transformer_pipelines import PIPELINES

from escdiff.backbone.family.blocks import TEXT
from escdiff.backbone.transformer import TransformerBackbone

WORDS = "a red mug"


def make(name: str, folder) -> TransformerBackbone:
    backbone = TransformerBackbone(PIPELINES[name](), "tiny", text_cache=folder)
    backbone.prompts.given["max_sequence_length"] = 24
    return backbone


@pytest.mark.parametrize("name", PIPELINES)
def test_another_run_reads_what_one_has_encoded(name, tmp_path, monkeypatch):
    own = make(name, None)
    first = make(name, tmp_path).prompts.encoded(WORDS)
    other = make(name, tmp_path)
    monkeypatch.setattr(other.stock, "encode_prompt", None)  # not asked again
    found = other.prompts.encoded(WORDS)
    assert set(found) == set(first) == set(own.prompts.encoded(WORDS))
    assert all(torch.equal(first[key], value) for key, value in own.prompts.encoded(WORDS).items())
    noisy = torch.randn(1, own.sample_latents(own.moments(torch.zeros(1, 3, 64, 64))).shape[1], 8, 8)
    with torch.no_grad():
        painted = [own.predict(noisy, torch.tensor([500]), text) for text in (first, found)]
    assert torch.equal(*painted)
    if name in ("pixart", "sana"):  # padding is not stored
        (file,) = tmp_path.rglob("*.safetensors")
        assert file.stat().st_size < 0.9 * first[TEXT].nbytes + 2000


def test_other_types_settings_and_damaged_files_are_encoded_anew(tmp_path):
    before = make("pixart", tmp_path)
    before.prompts.encoded(WORDS)
    before.to(dtype=torch.bfloat16).prompts.encoded(WORDS)
    longer = make("pixart", tmp_path)
    longer.prompts.given["max_sequence_length"] = 32
    longer.prompts.encoded(WORDS)
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == 3 and len({file.parent for file in files}) == 3
    for file in files:
        file.write_bytes(b"cut off")
    assert torch.equal(
        make("pixart", tmp_path).prompts.encoded(WORDS)[TEXT], make("pixart", None).prompts.encoded(WORDS)[TEXT]
    )
