"""Concepts in other programs' layouts, in galleries and on the hub (without the hub: what would be sent)."""

import base64
import io
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import tiny
import torch
from painting import make_concept
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from escdiff.backbone.adapters.attached import LORA, LowRank
from escdiff.backbone.lora import lora_layers
from escdiff.concept import Concept
from escdiff.encoder import hub
from escdiff.sharing import __main__ as door
from escdiff.sharing import gallery
from escdiff.sharing.gallery import make_gallery
from escdiff.sharing.hub import concept_card, push_to_hub
from escdiff.sharing.layouts import export_embeddings
from escdiff.support.errors import UserError


def assert_copied_with_preview(source, copy):
    """Every tensor and every key of the metadata are as they were; a small picture is added."""
    with safe_open(source, "pt") as a, safe_open(copy, "pt") as b:
        metadata = b.metadata()
        shown = metadata.pop("modelspec.thumbnail")
        assert a.metadata() == metadata and set(a.keys()) == set(b.keys())
        assert all(torch.equal(a.get_tensor(key), b.get_tensor(key)) for key in set(a.keys()))
    head, _, data = shown.partition(",")
    with Image.open(io.BytesIO(base64.b64decode(data))) as picture:
        assert head == "data:image/jpeg;base64" and max(picture.size) <= 256 and picture.format == "JPEG"


def test_a_gallery(tiny_backbone, tmp_path):
    for seed, name in enumerate(("mug", "dog")):
        make_concept(tiny_backbone, seed).save(tmp_path / f"{name}.safetensors")
    files = [tmp_path / f"{name}.safetensors" for name in ("mug", "dog")]
    out = tmp_path / "gallery"
    make_gallery(files, tiny_backbone, out, scenes=("a {}", "a red {}"), steps=1)
    assert {p.name for p in out.iterdir()} == {
        "mug.safetensors", "mug.png", "dog.safetensors", "dog.png", "gallery.png", "README.md"}  # fmt: skip
    assert_copied_with_preview(files[0], out / "mug.safetensors")
    card = huggingface_hub.ModelCard.load(out / "README.md")
    assert card.data.library_name == "escdiff" and card.data.pipeline_tag == "text-to-image"
    assert card.data.base_model is None  # "tiny" is no model on the hub, which would refuse the card
    assert "layers of tiny" in card.text and "![dog](dog.png)" in card.text and "escdiff.load_concept" in card.text
    stamp = (out / "mug.png").stat().st_mtime_ns
    make_gallery(files, tiny_backbone, out, scenes=("a {}", "a red {}"), steps=1)
    assert (out / "mug.png").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(("given", "expected"), [
    (["CC0-1.0"], {"license": "cc0-1.0"}), (["", "CC0-1.0"], {"license": "cc0-1.0"}), ([""], {}),
    (["my own"], {"license": "other", "license_name": "my own"}),
    (["CC0-1.0", "MIT"], {"license": "other", "license_name": "CC0-1.0; MIT"}),
])  # fmt: skip
def test_the_cards_base_model_licence_and_branches(given, expected, tiny_backbone):
    concepts = {str(i): replace(make_concept(tiny_backbone), license=name) for i, name in enumerate(given)}
    concepts["0"] = replace(concepts["0"], base_model="someone/tiny", branches={"encoder": "me/enc", "hash": "0"})
    card = huggingface_hub.ModelCard(concept_card(concepts))
    found = {key: value for key, value in card.data.to_dict().items() if key.startswith("license")}
    assert found == expected and card.data.base_model == "someone/tiny"
    assert 'load_branches(pipe, "me/enc")' in card.text


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
    assert b'load_concept(pipe, "me/mug/mug")' in sent["README.md"]
    Image.new("RGB", (600, 300)).save(tmp_path / "mug.png")
    push_to_hub(tmp_path / "mug.safetensors", "me/mug")
    (tmp_path / "sent.safetensors").write_bytes(sent["mug.safetensors"])
    assert_copied_with_preview(tmp_path / "mug.safetensors", tmp_path / "sent.safetensors")
    (tmp_path / "bad.bin").write_bytes(b"")
    with pytest.raises(UserError, match="pickle bad.bin"):
        push_to_hub(tmp_path, "me/mug")
    with pytest.raises(UserError, match="nothing at"):
        push_to_hub(tmp_path / "no", "me/mug")


def test_files_go_into_folders_that_are_not_there_yet(tiny_backbone, tmp_path):
    make_concept(tiny_backbone).save(tmp_path / "mug.safetensors")
    out = tmp_path / "new" / "er" / "mug.safetensors"
    door.export(tmp_path / "mug.safetensors", out, attribute="shape", layout="p+", token="<mug>")
    assert len(load_file(out)) == 16
    with pytest.raises(UserError, match="folder cannot be made"):
        door.export(tmp_path / "mug.safetensors", tmp_path / "mug.safetensors" / "x", layout="p+")


def test_the_gallerys_door_has_a_device_a_precision_and_the_backbones_own_guidance(
    tiny_backbone, tiny_folder, tmp_path, monkeypatch
):
    make_concept(tiny_backbone).save(tmp_path / "mug.safetensors")
    seen = {}
    monkeypatch.setattr(gallery, "generate", lambda backbone, prompts, *_, **options: seen.update(
        options, dtype=backbone.dtype) or [Image.new("RGB", (8, 8))] * len(prompts))  # fmt: skip
    door.gallery([tmp_path / "mug.safetensors"], tmp_path / "new" / "g", str(tiny_folder), device="cpu",
                 dtype="bfloat16", steps=2)  # fmt: skip
    assert seen["guidance"] == 7.5 and seen["dtype"] == torch.bfloat16
    assert (tmp_path / "new" / "g" / "gallery.png").is_file()


@pytest.fixture
def weighty(tiny_backbone, tmp_path):
    """A backbone of its own, and a concept's file with its weights beside it."""
    backbone = tiny.make_backbone(
        **{part: getattr(tiny_backbone, part) for part in ("vae", "text_encoder", "tokenizer")}
    )
    weights = LowRank(backbone, 2)
    weights.save(tmp_path / "made" / "adapter")
    weights.remove()
    file = tmp_path / "made" / "mug.safetensors"
    replace(make_concept(backbone), notes={"adapter": "adapter"}).save(file)
    return backbone, file


def test_a_gallery_paints_with_a_concepts_weights_and_copies_them(weighty, tmp_path, monkeypatch):
    backbone, file = weighty
    seen, out = [], tmp_path / "gallery"
    monkeypatch.setattr(gallery, "generate", lambda backbone, prompts, *_, **options: seen.append(
        len(lora_layers(backbone.unet))) or [Image.new("RGB", (8, 8))] * len(prompts))  # fmt: skip
    make_gallery([file], backbone, out)
    assert seen[0] > 0 and not lora_layers(backbone.unet)
    found = Concept.load(out / "mug" / "mug.safetensors")
    assert found.notes["adapter"] == "adapter" and (out / "mug.png").is_file()
    assert (out / "mug" / "adapter" / LORA).read_bytes() == (file.parent / "adapter" / LORA).read_bytes()
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "`mug/mug.safetensors`" in card and "mug: with weights for the U-Net" in card
    shutil.rmtree(file.parent / "adapter")
    with pytest.raises(UserError, match="needs its weights in"):
        make_gallery([file], backbone, tmp_path / "other")


def test_a_concepts_weights_are_pushed_and_fetched_with_it(weighty, tmp_path, monkeypatch):
    _, file = weighty
    (file.parent / "adapter" / "notes.bin").write_bytes(b"")  # no weights
    repository = tmp_path / "repository"
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, repo, private, exist_ok: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", lambda self, repo_id, folder_path, commit_message: (
        shutil.copytree(folder_path, repository) and SimpleNamespace(commit_url="")))  # fmt: skip
    push_to_hub(file, "me/mug")
    names = {path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()}
    assert names == {"README.md", "mug/mug.safetensors", f"mug/adapter/{LORA}"}
    assert 'load_concept(pipe, "me/mug/mug/mug")' in (repository / "README.md").read_text(encoding="utf-8")
    (repository / "mug" / "adapter" / "a.bin").write_bytes(b"")

    def download(name, dry_run=False, allow_patterns=()):
        kept = huggingface_hub.utils.filter_repo_objects([*names, "mug/adapter/a.bin"], allow_patterns=allow_patterns)
        for path in () if dry_run else kept:
            (tmp_path / "cache" / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(repository / path, tmp_path / "cache" / path)
        return [] if dry_run else str(tmp_path / "cache")

    monkeypatch.setattr(hub, "snapshot_download", download)
    fetched = Path(hub.concept_file("me/mug/mug/mug"))
    assert [path.name for path in (fetched.parent / "adapter").iterdir()] == [LORA]
    shutil.rmtree(file.parent / "adapter")
    with pytest.raises(UserError, match="needs its weights in"):
        push_to_hub(file, "me/mug")


@pytest.mark.parametrize("more", [{"notes": {"adapter": "adapter"}}, {"branches": {"encoder": "me/enc", "hash": "0"}}])
def test_a_concept_with_weights_is_no_textual_inversion(tiny_backbone, tmp_path, more):
    concept = replace(make_concept(tiny_backbone, layers="tied"), **more)
    with pytest.raises(UserError, match="needs weights in the U-Net besides its words"):
        export_embeddings(concept, tmp_path / "x.safetensors", "shape")
    assert not (tmp_path / "x.safetensors").exists()
