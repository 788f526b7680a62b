"""Concepts in other programs' layouts, in galleries and on the hub (without the hub: what would be sent)."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import huggingface_hub
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file
from test_concept import assert_same
from test_pipeline import make_concept

from escdiff.concept import Concept
from escdiff.errors import UserError
from escdiff.sharing.gallery import make_gallery
from escdiff.sharing.hub import push_to_hub
from escdiff.sharing.layouts import (
    PER_BLOCK,
    export_p_plus,
    export_textual_inversion,
    import_p_plus,
)


def test_p_plus_round_trip(tiny_backbone, tmp_path):
    concept = make_concept(tiny_backbone)
    export_p_plus(concept, tmp_path / "p.safetensors", "shape", "<mug>")
    assert sorted(load_file(tmp_path / "p.safetensors")) == sorted(f"<mug>-{i}" for i in range(16))
    again = import_p_plus(tmp_path / "p.safetensors", tiny_backbone, "shape")
    assert torch.equal(again.vectors["shape"], concept.vectors["shape"]) and again.space == concept.space
    assert torch.equal(again.anchors["shape"], concept.anchors["shape"])
    with pytest.raises(UserError, match="1 layer cells x 1 stages; expected 16 x 1"):
        export_p_plus(make_concept(tiny_backbone, layers="tied"), tmp_path / "p.safetensors", "shape")
    with pytest.raises(UserError, match="behind the text encoder"):
        export_p_plus(replace(concept, placement="states"), tmp_path / "p.safetensors", "shape")


def test_a_file_of_the_port_that_counted_blocks(tiny_backbone, tmp_path):
    tokens = {f"<cat>-{i}": torch.full((32,), float(i)) for i in range(16)}
    torch.save(tokens, tmp_path / "learned_embeds.bin")
    with pytest.raises(UserError, match="is a pickle"):
        import_p_plus(tmp_path / "learned_embeds.bin", tiny_backbone)
    concept = import_p_plus(tmp_path / "learned_embeds.bin", tiny_backbone, per_block=True, trust_pickle=True)
    assert concept.vectors["concept"][:, 0, 0, 0].tolist() == list(PER_BLOCK)
    # The tokens follow the blocks of the U-Net: two layers each on the way down, the middle, three on the way up.
    blocks = [name.split(".attentions")[0] for name in tiny_backbone.p_plus().layer_names]
    assert [sorted(set(blocks), key=blocks.index).index(block) for block in blocks] == list(PER_BLOCK)


@pytest.mark.parametrize(("tensors", "words"), [
    ({"<a>-0": torch.zeros(32)}, "expected TOKEN-0 to TOKEN-15"),
    ({f"<a>-{i}": torch.zeros(31) for i in range(16)}, "expected width 32"),
])  # fmt: skip
def test_other_files_are_refused(tensors, words, tiny_backbone, tmp_path):
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=words):
        import_p_plus(tmp_path / "x.safetensors", tiny_backbone)
    (tmp_path / "y.safetensors").write_bytes(b"no")
    for name in ("y.safetensors", "absent.safetensors"):
        with pytest.raises(UserError):
            import_p_plus(tmp_path / name, tiny_backbone)


def test_textual_inversion_for_sdxl_is_read_by_diffusers(tmp_path):
    backbone = tiny.make_sdxl()
    concept = make_concept(backbone, layers="tied")
    export_textual_inversion(concept, tmp_path / "ti.safetensors", "shape", widths=(32, 48))
    state, pipeline = load_file(tmp_path / "ti.safetensors"), copy.deepcopy(backbone).pipeline()
    for key, suffix in (("clip_l", ""), ("clip_g", "_2")):
        encoder, tokenizer = (getattr(pipeline, part + suffix) for part in ("text_encoder", "tokenizer"))
        pipeline.load_textual_inversion(state[key], token="<mug>", text_encoder=encoder, tokenizer=tokenizer)
        ids = tokenizer(pipeline.maybe_convert_prompt("<mug>", tokenizer)).input_ids[1:-1]
        rows = encoder.get_input_embeddings().weight[ids]
        whole = concept.vectors["shape"][0, 0]
        assert torch.equal(rows, whole[:, :32] if key == "clip_l" else whole[:, 32:])
    with pytest.raises(UserError, match="expected those of two encoders"):
        export_textual_inversion(concept, tmp_path / "ti.safetensors", "shape", widths=(32, 32))


def test_a_gallery(tiny_backbone, tmp_path):
    for seed, name in enumerate(("mug", "dog")):
        make_concept(tiny_backbone, seed).save(tmp_path / f"{name}.safetensors")
    files = [tmp_path / f"{name}.safetensors" for name in ("mug", "dog")]
    out = tmp_path / "gallery"
    make_gallery(files, tiny_backbone, out, scenes=("a {}", "a red {}"), steps=1)
    assert {p.name for p in out.iterdir()} == {
        "mug.safetensors", "mug.png", "dog.safetensors", "dog.png", "gallery.png", "README.md"}  # fmt: skip
    assert_same(Concept.load(out / "mug.safetensors"), Concept.load(files[0]))
    card = (out / "README.md").read_text()
    assert "base_model: tiny" in card and "![dog](dog.png)" in card and "escdiff.load_concept" in card
    stamp = (out / "mug.png").stat().st_mtime_ns
    make_gallery(files, tiny_backbone, out, scenes=("a {}", "a red {}"), steps=1)
    assert (out / "mug.png").stat().st_mtime_ns == stamp


def test_what_is_pushed(tiny_backbone, tmp_path, monkeypatch):
    """The hub's client is the seam: the folder is read as it would be sent."""
    make_concept(tiny_backbone).save(tmp_path / "mug.safetensors")
    sent = {}

    def upload(self, repo_id, folder_path, commit_message):
        sent.update({file.name: file.read_bytes() for file in folder_path.iterdir()}, message=commit_message)
        return SimpleNamespace(commit_url="https://hub/x")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, repo, private, exist_ok: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    assert push_to_hub(tmp_path / "mug.safetensors", "me/mug") == "https://hub/x"
    assert sent["mug.safetensors"] == (tmp_path / "mug.safetensors").read_bytes()
    assert b'hf_hub_download("me/mug", "mug.safetensors")' in sent["README.md"]
    (tmp_path / "bad.bin").write_bytes(b"")
    with pytest.raises(UserError, match="pickle bad.bin"):
        push_to_hub(tmp_path, "me/mug")
    with pytest.raises(UserError, match="nothing at"):
        push_to_hub(tmp_path / "no", "me/mug")
