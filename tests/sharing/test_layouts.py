"""Embeddings of other programs: written as their layouts are described, and read again."""

from dataclasses import replace

import pytest
import tiny
import torch
from painting import make_concept
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from escdiff.concept import Concept
from escdiff.sharing.blocks import block_of
from escdiff.sharing.layouts import PER_BLOCK, XTI, export_embeddings, import_embeddings
from escdiff.support.errors import UserError

TOKEN = "<mug>"
# kohya-ss/sd-scripts, train_textual_inversion_XTI.py: names of the 16 layers, sorted as its loader sorts them.
KOHYA = ["IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "MID", "OUT03", "OUT04", "OUT05", "OUT06", "OUT07", "OUT08",
         "OUT09", "OUT10", "OUT11"]  # fmt: skip


@pytest.fixture(scope="module")
def sdxl():
    return tiny.make_sdxl()


def test_p_plus_round_trip(tiny_backbone, tmp_path):
    concept = make_concept(tiny_backbone)
    export_embeddings(concept, tmp_path / "p.safetensors", "shape", "p+", TOKEN)
    assert sorted(load_file(tmp_path / "p.safetensors")) == sorted(f"<mug>-{i}" for i in range(16))
    again = import_embeddings(tmp_path / "p.safetensors", tiny_backbone, "shape")
    assert torch.equal(again.vectors["shape"], concept.vectors["shape"]) and again.space == concept.space
    assert torch.equal(again.anchors["shape"], concept.anchors["shape"])
    with pytest.raises(UserError, match="1 layer cells x 1 stages; expected 16 x 1"):
        export_embeddings(make_concept(tiny_backbone, layers="tied"), tmp_path / "p.safetensors", "shape", "p+")
    with pytest.raises(UserError, match="residuals for a transformer's layers"):
        export_embeddings(
            replace(concept, family="flux", words={"shape": "mug"}), tmp_path / "p.safetensors", "shape", "p+"
        )
    with pytest.raises(UserError, match="fused behind the text encoder"):
        export_embeddings(replace(concept, fused={"shape": torch.zeros(4)}), tmp_path / "p.safetensors", "shape", "p+")
    with pytest.raises(UserError, match="layout='kohya' given; expected one of ti"):
        export_embeddings(concept, tmp_path / "p.safetensors", "shape", "kohya")


def test_kohyas_file_is_read_layer_by_layer_and_written_again(tiny_backbone, sdxl, tmp_path):
    # A file by the layout's description: (vectors, width) each, the number of the layer in execution order inside.
    theirs = {key: torch.full((2, 32), float(i)) for i, key in enumerate(sorted(KOHYA))}
    save_file(theirs, tmp_path / "xti.safetensors")
    concept = import_embeddings(tmp_path / "xti.safetensors", tiny_backbone)
    assert concept.vectors["concept"][:, 0, 0, 0].tolist() == list(range(16)) and concept.notes["layout"] == "xti"
    assert concept.space.cells[6] == ("mid_block.attentions.0.transformer_blocks.0.attn2",)
    export_embeddings(concept, tmp_path / "again.safetensors", "concept", "xti")
    again = load_file(tmp_path / "again.safetensors")
    assert tuple(sorted(again)) == XTI == tuple(KOHYA)
    assert all(torch.equal(again[key], value) for key, value in theirs.items())
    with pytest.raises(UserError, match="xti is for the 16 of Stable Diffusion 1.x"):
        export_embeddings(make_concept(sdxl), tmp_path / "x.safetensors", "shape", "xti")


def test_the_blocks_numbers_are_those_of_the_first_stable_diffusion(tiny_backbone, sdxl):
    found = [block_of(layer) for layer in tiny_backbone.p_plus().layer_names]
    assert found == [*(("input", n, 0) for n in (1, 2, 4, 5, 7, 8)), ("middle", 0, 0),
                     *(("output", n, 0) for n in range(3, 12))]  # fmt: skip
    xl = sdxl.p_plus().layer_names
    expected = [*(("input", n) for n in (4, 5, 7, 8)), ("middle", 0), *(("output", n) for n in range(6))]
    assert list(dict.fromkeys(block_of(layer)[:2] for layer in xl)) == expected
    assert {block_of(layer)[2] for layer in xl} == {0, 1}
    with pytest.raises(UserError, match="no cross-attention of Stable Diffusion"):
        block_of("transformer_blocks.0.attn2")


@pytest.mark.parametrize("layout", ["ti", "emb_params"])
def test_one_tensor_round_trip(layout, tiny_backbone, tmp_path):
    concept = make_concept(tiny_backbone, layers="tied")
    export_embeddings(concept, tmp_path / "e.safetensors", "shape", layout, TOKEN)
    assert list(load_file(tmp_path / "e.safetensors")) == [TOKEN if layout == "ti" else "emb_params"]
    again = import_embeddings(tmp_path / "e.safetensors", tiny_backbone, "shape")
    assert torch.equal(again.vectors["shape"], concept.vectors["shape"]) and again.space == concept.space
    with pytest.raises(UserError, match="fills 16 layer cells"):
        export_embeddings(make_concept(tiny_backbone), tmp_path / "e.safetensors", "shape", layout)


def test_a1111s_pickle_is_read_if_its_author_is_trusted(tiny_backbone, tmp_path):
    value = torch.randn(3, 32)
    torch.save({"string_to_token": {"*": torch.tensor(265)}, "string_to_param": {"*": value}, "name": "mug", "step": 9},
               tmp_path / "mug.pt")  # fmt: skip
    with pytest.raises(UserError, match="is a pickle"):
        import_embeddings(tmp_path / "mug.pt", tiny_backbone)
    concept = import_embeddings(tmp_path / "mug.pt", tiny_backbone, trust_pickle=True)
    assert torch.equal(concept.vectors["concept"][0, 0], value)


def test_two_encoders_round_trip_and_diffusers_reads_them(tmp_path):
    backbone = tiny.make_sdxl()
    concept = make_concept(backbone, layers="tied")
    export_embeddings(concept, tmp_path / "ti.safetensors", "shape", "clip", widths=(32, 48))
    again = import_embeddings(tmp_path / "ti.safetensors", backbone, "shape")
    assert torch.equal(again.vectors["shape"], concept.vectors["shape"])
    state, pipeline = load_file(tmp_path / "ti.safetensors"), backbone.pipeline()  # its own, which may change
    for key, suffix in (("clip_l", ""), ("clip_g", "_2")):
        encoder, tokenizer = (getattr(pipeline, part + suffix) for part in ("text_encoder", "tokenizer"))
        pipeline.load_textual_inversion(state[key], token="<mug>", text_encoder=encoder, tokenizer=tokenizer)
        ids = tokenizer(pipeline.maybe_convert_prompt("<mug>", tokenizer)).input_ids[1:-1]
        rows = encoder.get_input_embeddings().weight[ids]
        whole = concept.vectors["shape"][0, 0]
        assert torch.equal(rows, whole[:, :32] if key == "clip_l" else whole[:, 32:])
    with pytest.raises(UserError, match="expected those of two encoders"):
        export_embeddings(concept, tmp_path / "ti.safetensors", "shape", "clip", widths=(32, 32))


def test_a_file_of_the_port_that_counted_blocks(tiny_backbone, tmp_path):
    tokens = {f"<cat>-{i}": torch.full((32,), float(i)) for i in range(16)}
    torch.save(tokens, tmp_path / "learned_embeds.bin")
    with pytest.raises(UserError, match="is a pickle"):
        import_embeddings(tmp_path / "learned_embeds.bin", tiny_backbone)
    concept = import_embeddings(tmp_path / "learned_embeds.bin", tiny_backbone, per_block=True, trust_pickle=True)
    assert concept.vectors["concept"][:, 0, 0, 0].tolist() == list(PER_BLOCK)
    # The tokens follow the blocks of the U-Net: two layers each on the way down, the middle, three on the way up.
    blocks = [name.split(".attentions")[0] for name in tiny_backbone.p_plus().layer_names]
    assert [sorted(set(blocks), key=blocks.index).index(block) for block in blocks] == list(PER_BLOCK)


@pytest.mark.parametrize(("tensors", "words"), [
    ({"<a>-0": torch.zeros(32), "<a>-2": torch.zeros(32)}, "expected TOKEN-0 to TOKEN-15"),
    ({f"<a>-{i}": torch.zeros(32) for i in range(3)}, "vectors of 3 layers; expected TOKEN-0 to TOKEN-15"),
    ({f"<a>-{i}": torch.zeros(31) for i in range(16)}, "expected width 32"),
    ({"<a>": torch.zeros(31)}, "expected width 32"),
    ({"conv.weight": torch.zeros(3, 3, 3, 3)}, "or a textual inversion"),
])  # fmt: skip
def test_other_files_are_refused(tensors, words, tiny_backbone, tmp_path):
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=words):
        import_embeddings(tmp_path / "x.safetensors", tiny_backbone)
    (tmp_path / "y.safetensors").write_bytes(b"no")
    for name in ("y.safetensors", "absent.safetensors"):
        with pytest.raises(UserError):
            import_embeddings(tmp_path / name, tiny_backbone)


def test_every_file_says_what_it_is_to_other_programs(tiny_backbone, tmp_path):
    """ModelSpec 1.0.1: the required keys, and the licence, beside our own keys."""
    concept = replace(make_concept(tiny_backbone), license="CC0-1.0", notes={"shape.reference": "red mug.png"})
    concept.save(tmp_path / "c.safetensors")
    export_embeddings(concept, tmp_path / "xti.safetensors", "shape", "xti", TOKEN)
    expected = {
        "c": ("tiny/escdiff-concept", "escdiff", "red mug"),
        "xti": ("tiny/textual-inversion", "diffusers", TOKEN),
    }
    for name, (architecture, implementation, title) in expected.items():
        with safe_open(tmp_path / f"{name}.safetensors", "pt") as file:
            told = file.metadata()
        spec = {key.removeprefix("modelspec."): told[key] for key in told if key.startswith("modelspec.")}
        assert spec == {"sai_model_spec": "1.0.1", "architecture": architecture, "implementation": implementation,
                        "title": title, "license": "CC0-1.0"}  # fmt: skip
    assert Concept.load(tmp_path / "c.safetensors").license == "CC0-1.0"
