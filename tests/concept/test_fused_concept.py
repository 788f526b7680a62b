"""Concepts with an embedding that is fused behind the text encoder: their file, and what they are joined to."""

import pytest
import torch

from escdiff.concept import Concept
from escdiff.concept.mixing import split
from escdiff.concept.naming import under
from escdiff.conditioning import ConditioningSpace
from escdiff.support.errors import UserError

SPACE = ConditioningSpace((("a.attn2", "b.attn2"),), (0, 800, 1000))


def make(seed=0, gate=True, **parts):
    torch.manual_seed(seed)
    word = torch.randn(2, 8)
    plain = {
        "vectors": {"concept": word.expand(1, 2, -1, -1).clone()}, "anchors": {"concept": word}, "space": SPACE,
        "base_model": "x", "text_hash": "0", "fused": {"concept": torch.randn(5)},
        "gates": {"concept": torch.tensor([[1.0, 0.0]])} if gate else {},
    }  # fmt: skip
    return Concept(**plain | parts)


def test_it_comes_back_from_its_file_and_a_plain_one_is_written_as_ever(tmp_path):
    concept = make()
    concept.save(tmp_path / "a.safetensors")
    found = Concept.load(tmp_path / "a.safetensors")
    assert torch.equal(found.fused["concept"], concept.fused["concept"]) and found.gates["concept"].tolist() == [[1, 0]]
    plain = make(gate=False, fused={})
    plain.save(tmp_path / "b.safetensors")
    assert Concept.load(tmp_path / "b.safetensors").fused == {} and plain.fusions() == {}


def test_what_is_fused_stands_at_the_last_token_and_its_strength_is_a_share():
    concept = make()
    (fusion,) = concept.fusions("mug")["<mug>"]
    assert fusion.offset == 1 and fusion.embedding.shape == (1, 5) and fusion.share.tolist() == [[[1.0, 0.0]]]
    assert concept.fusions().keys() == {"<concept>"} and concept.fusions("mug").keys() == {"<mug>", "<mug-concept>"}
    half = concept.scaled(0.5)
    assert half.gates["concept"].tolist() == [[0.5, 0.0]] and torch.equal(
        half.fused["concept"], concept.fused["concept"]
    )
    assert concept.scaled(1.0).gates["concept"].tolist() == [[1.0, 0.0]]
    assert make(gate=False).scaled(0.25).gates["concept"].tolist() == [[0.25, 0.25]]
    assert make(gate=False).fusions()["<concept>"][0].share.tolist() == [[[1.0, 1.0]]]


def test_joined_concepts_keep_their_own(tmp_path):
    one, two = make(0), make(1)
    joined = Concept.combine(**under("mug", one), **under("dog", two))
    assert torch.equal(joined.fused["dog"], two.fused["concept"]) and joined.gates["mug"].tolist() == [[1.0, 0.0]]
    found = joined.fusions()
    assert [f.offset for f in found["<concept>"]] == [1, 3] and torch.equal(
        found["<mug>"][0].embedding, one.fused["concept"][None]
    )
    assert joined.only("dog").fused.keys() == {"dog"}
    middle = one.blend(two, 0.5)
    assert torch.allclose(middle.fused["concept"], (one.fused["concept"] + two.fused["concept"]) / 2)
    parts = split(one)
    assert all(torch.equal(parts.fused[name], one.fused["concept"]) for name in ("shape", "appearance", "concept"))
    with pytest.raises(UserError, match="several words"):
        under("mug", parts)


def test_what_no_program_could_fuse_is_refused():
    for fused in ({"other": torch.zeros(5)}, {"concept": torch.zeros(1, 5)}):
        with pytest.raises(UserError, match="fused"):
            make(fused=fused)
    with pytest.raises(UserError, match="finite"):
        make(fused={"concept": torch.tensor([float("nan")])})
