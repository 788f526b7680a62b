"""`python -m escdiff.sharing inspect FILE`: every kind of file that a folder of models holds, and what is none."""

import artefacts
import ldm_layout
import pytest
import torch
from painting import make_concept
from safetensors.torch import save_file
from typer.testing import CliRunner

from escdiff.sharing.__main__ import app
from escdiff.sharing.inspect import inspect
from escdiff.sharing.layouts import XTI
from escdiff.support.errors import UserError


def ti(*shape):
    return torch.zeros(*shape)


def lora(prefix, down, up):
    return {f"{prefix}{down}": torch.zeros(4, 768), f"{prefix}{up}": torch.zeros(320, 4)}


KOHYA_LORA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k."
PEFT_LORA = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k."
FILES = {
    "ti": ({"<cat>": ti(2, 768)}, ["one tensor under its token", "token: <cat>", "of 2, width 768", "Diffusion 1.x"]),
    "emb_params": ({"emb_params": ti(3, 1024)}, ["A1111, emb_params", "Diffusion 2.x"]),
    "clip": ({"clip_l": ti(1, 768), "clip_g": ti(1, 1280)}, ["one tensor per text encoder", "Diffusion XL"]),
    "p+": ({f"<a>-{i}": ti(768) for i in range(16)}, ["TOKEN-0, TOKEN-1", "16 cells of 1, width 768"]),
    "xti": ({key: ti(4, 768) for key in XTI}, ["kohya's XTI", "16 cells of 4, width 768"]),
    "lora (kohya)": (lora(KOHYA_LORA, "lora_down.weight", "lora_up.weight"), ["LoRA", "rank: 4", "Diffusion 1.x"]),
    "lora (peft)": (lora(PEFT_LORA, "lora_A.weight", "lora_B.weight"), ["LoRA", "rank: 4", "Diffusion 1.x"]),
    "ip-adapter": ({"image_proj.proj.weight": ti(8, 8), "ip_adapter.1.to_k_ip.weight": ti(8, 8)}, ["IP-Adapter"]),
    "unknown": ({"a.weight": ti(2, 2), "b.weight": ti(2, 2)}, ["unknown", "2 tensors, 8 numbers"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_a_file_by_its_layouts_description(kind, tmp_path):
    tensors, words = FILES[kind]
    save_file(tensors, tmp_path / "x.safetensors")
    said = str(inspect(tmp_path / "x.safetensors"))
    assert all(word in said for word in words), said


def test_what_we_write(tiny_backbone, tmp_path):
    make_concept(tiny_backbone).save(tmp_path / "mug.safetensors")
    said = CliRunner().invoke(app, ["inspect", str(tmp_path / "mug.safetensors")]).output
    assert said.startswith("ESCDiff concept\n") and "<shape> of 2 vectors, <appearance> of 2 vectors" in said
    assert "layer cells x stages: 16 x 1" in said and "made for: tiny" in said and "title: shape, appearance" in said
    encoder, _ = artefacts.make_encoder(tmp_path, tiny_backbone)
    encoder.save_pretrained(tmp_path / "encoder")
    for path in (tmp_path / "encoder", tmp_path / "encoder" / "model.safetensors"):
        said = str(inspect(path))
        assert said.startswith("ESCDiff encoder\n") and "made for: tiny, text width 32" in said
        assert "architecture: tiny/escdiff-encoder" in said and "license: apache-2.0" in said


def test_whole_networks_in_both_layouts(tiny_backbone, tmp_path):
    ldm_layout.save_single_file(tiny_backbone, tmp_path / "whole.safetensors")
    assert inspect(tmp_path / "whole.safetensors").kind.startswith("checkpoint")
    for name, part in (("U-Net (diffusers' layout)", tiny_backbone.unet), ("VAE", tiny_backbone.vae),
                       ("text encoder (CLIP)", tiny_backbone.text_encoder)):  # fmt: skip
        save_file({key: value.contiguous() for key, value in part.state_dict().items()}, tmp_path / "x.safetensors")
        assert inspect(tmp_path / "x.safetensors").kind == name


def test_a_pickle_is_opened_only_if_asked(tmp_path):
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": torch.zeros(1, 768)}}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="is a pickle, which can run code"):
        inspect(tmp_path / "x.pt")
    assert inspect(tmp_path / "x.pt", trust_pickle=True).kind == "textual inversion (A1111, string_to_param)"


def test_what_is_no_such_file_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "cut.pt").write_bytes(b"PK")
    for name, words in (("cut.safetensors", "cannot be read"), ("empty.safetensors", "cannot be read"),
                        ("cut.pt", "cannot be read"), ("absent", "no file at"), (".", "folder without")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            inspect(tmp_path / name, trust_pickle=True)


def test_hostile_files_end_in_a_sentence_or_in_plain_text(tmp_path):
    for i, (tensors, attributes) in enumerate(
        [({"vectors.a": ti(2)}, '["a"]'), ({"vectors.a": ti(1, 1, 1, 1)}, '["b"]'), ({"x": ti(2)}, "{")]
    ):
        save_file(tensors, tmp_path / f"{i}.safetensors", {"format": "escdiff-concept", "attributes": attributes})
        with pytest.raises(UserError, match="is damaged"):
            inspect(tmp_path / f"{i}.safetensors")
    save_file({"a\x1b[2J\n": ti(2, 768)}, tmp_path / "x.safetensors", {"modelspec.title": "\x1b]0;x\x07" * 99})
    said = str(inspect(tmp_path / "x.safetensors"))
    assert "\x1b" not in said and "token: a?[2J?\n" in said and max(map(len, said.splitlines())) < 300
