"""Encoders that leave their machine: from the hub's cache, with a tower that lies elsewhere, with a card."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import artefacts
import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from painting import make_concept
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPVisionConfig, CLIPVisionModel

from escdiff import ConceptEncoder, ESCDiffPipeline
from escdiff.concept import Concept
from escdiff.encoder.checkpoint import read_gates
from escdiff.encoder.hub import concept_file, fetch
from escdiff.sharing.hub import push_to_hub
from escdiff.support.errors import UserError

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_backbone):
    """An encoder with branches, the U-Net that they were trained in, its folder, and the folder of its tower."""
    root = tmp_path_factory.mktemp("made")
    encoder, unet = artefacts.make_encoder(root, tiny_backbone, branch_rank=2)
    encoder.base_model = "someone/tiny"
    encoder.save_pretrained(root / "encoder", unet)
    return SimpleNamespace(encoder=encoder, unet=unet, folder=root / "encoder", tower=root / "tower")


def in_cache(folder, cache, repo="me/encoder", subfolder="", revision="main"):
    """Put a folder where `huggingface_hub` keeps a downloaded repository."""
    home = cache / f"models--{repo.replace('/', '--')}"
    (home / "refs").mkdir(parents=True, exist_ok=True)
    (home / "refs" / revision).write_text(REVISION, encoding="utf-8")
    shutil.copytree(folder, home / "snapshots" / REVISION / subfolder, ignore=shutil.ignore_patterns("local.json"))


def test_read_from_the_hub_by_its_id(made, tmp_path):
    encoder, folder = made.encoder, made.folder
    in_cache(folder, tmp_path, revision="v1")
    options = {"cache_dir": tmp_path, "vision": str(made.tower)}
    again = ConceptEncoder.from_pretrained("me/encoder", revision="v1", **options)
    assert again.name == "me/encoder"
    ours, theirs = encoder.encode(artefacts.PICTURE), again.encode(artefacts.PICTURE)
    assert artefacts.digest(ours.vectors) == artefacts.digest(theirs.vectors)
    assert theirs.branches == {"encoder": "me/encoder", "hash": again.branches.hash}
    assert again.branches.hash == ConceptEncoder.from_pretrained(folder).branches.hash
    with pytest.raises(UserError, match="no repository of that name.*check the name, the revision"):
        ConceptEncoder.from_pretrained("me/encoder", revision="v2", **options)
    with pytest.raises(UserError, match="no folder 'me/other'"):
        ConceptEncoder.from_pretrained("me/other", **options)


def test_no_pickle_is_fetched(monkeypatch, tmp_path):
    """The hub's client is the seam: what is asked for, matched as the client matches it."""
    asked = {}

    def download(name, dry_run=False, **options):
        asked.update(options, name=name)
        return [] if dry_run else "/x"

    monkeypatch.setattr("escdiff.encoder.hub.snapshot_download", download)
    assert str(fetch("me/encoder", "concept_encoder", revision="v1")) == "/x/concept_encoder"
    names = [
        "config.json",
        "model.safetensors",
        "model.bin",
        "branches/shape.safetensors",
        "branches/shape.bin",
        "a.py",
    ]
    names = [f"concept_encoder/{name}" for name in names]
    kept = list(huggingface_hub.utils.filter_repo_objects(names, allow_patterns=asked["allow_patterns"]))
    assert kept == [names[0], names[1], names[3]] and asked["revision"] == "v1"


def test_what_is_too_large_is_refused_before_it_is_fetched(monkeypatch):
    """The hub's client is the seam: it names the sizes, and is not asked for more."""

    def download(name, dry_run=False, **options):
        assert dry_run, "fetched"
        return [SimpleNamespace(filename="a", file_size=2**32), SimpleNamespace(filename="b", file_size=2**33)]

    monkeypatch.setattr("escdiff.encoder.hub.snapshot_download", download)
    with pytest.raises(UserError, match="the concept in 'me/x' has 12,885 MB, more than 67; expected the files of one"):
        concept_file("me/x/mug")
    with pytest.raises(UserError, match="the encoder in 'me/x' has 12,885 MB"):
        fetch("me/x")


def test_a_concept_by_its_name_on_the_hub(tiny_backbone, tmp_path, monkeypatch):
    concept = make_concept(tiny_backbone)
    concept.save(tmp_path / "gallery" / "mug.safetensors")
    in_cache(tmp_path / "gallery", tmp_path / "cache", "me/concepts", revision="v1")
    in_cache(tmp_path / "gallery", tmp_path / "cache", "me/more", "red")
    found = Concept.load(concept_file("me/concepts/mug", revision="v1", cache_dir=tmp_path / "cache"))
    assert torch.equal(found.vectors["shape"], concept.vectors["shape"])
    assert concept_file("me/more/red/mug", cache_dir=tmp_path / "cache").is_file()
    with pytest.raises(UserError, match="'me/concepts' on the hub has no concept 'cup.safetensors'"):
        concept_file("me/concepts/cup", revision="v1", cache_dir=tmp_path / "cache")
    with pytest.raises(UserError, match="no folder 'me/none', and the hub and its cache"):
        concept_file("me/none/mug", cache_dir=tmp_path / "cache")
    for path in ("mug", "a/mug", "out/a/mug.safetensors", "../me/mug", "/me/x/mug", "~/x/y/mug", "me/../x/mug"):
        assert concept_file(path) == Path(path)
    monkeypatch.chdir(tmp_path)
    concept.save(tmp_path / "me" / "concepts" / "mug")
    assert concept_file("me/concepts/mug") == Path("me/concepts/mug")


def test_the_pipelines_encoder_is_found_in_its_repository(made, tmp_path, tiny_folder, monkeypatch):
    folder = made.folder
    pipeline = ESCDiffPipeline.from_pretrained(tiny_folder)
    pipeline.set_encoder(folder)
    pipeline.save_pretrained(tmp_path / "whole")
    hint = json.loads((tmp_path / "whole" / "concept_encoder" / "local.json").read_text(encoding="utf-8"))
    in_cache(tmp_path / "whole", tmp_path / "cache", "me/pipeline")
    options = {"cache_dir": str(tmp_path / "cache"), "local_files_only": True}
    again = ESCDiffPipeline.from_pretrained("me/pipeline", vision=hint["vision"], **options)
    assert again.concept_encoder.branches.hash == pipeline.concept_encoder.branches.hash
    in_cache(tiny_folder, tmp_path / "cache", "me/stock")
    assert ESCDiffPipeline.from_pretrained("me/stock", **options).concept_encoder is None


def test_moved_to_another_machine(made, tmp_path):
    folder = made.folder
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert about["encoder"]["vision"] == "local:tower"
    shutil.copytree(folder, tmp_path / "moved")
    (tmp_path / "moved" / "local.json").write_text(json.dumps({"vision": "/not/here"}), encoding="utf-8")
    with pytest.raises(UserError, match="the vision tower 'tower', which is not where it was; .*vision=DIR"):
        ConceptEncoder.from_pretrained(tmp_path / "moved")
    (tmp_path / "moved" / "local.json").unlink()
    with pytest.raises(UserError, match="the vision tower 'tower', which is not where it was; .*vision=DIR"):
        ConceptEncoder.from_pretrained(tmp_path / "moved")
    shutil.copytree(made.tower, tmp_path / "elsewhere")
    again = ConceptEncoder.from_pretrained(tmp_path / "moved", vision=str(tmp_path / "elsewhere"))
    again.save_pretrained(tmp_path / "resaved")
    saved = ConceptEncoder.from_pretrained(tmp_path / "resaved")
    ours, theirs = saved.encode(artefacts.PICTURE), again.encode(artefacts.PICTURE)
    assert artefacts.digest(ours.vectors) == artefacts.digest(theirs.vectors)
    torch.manual_seed(9)
    CLIPVisionModel(CLIPVisionConfig.from_pretrained(made.tower)).save_pretrained(tmp_path / "stranger")
    with pytest.raises(UserError, match="other weights than the one the encoder .* was trained with, 'tower'"):
        ConceptEncoder.from_pretrained(tmp_path / "moved", vision=str(tmp_path / "stranger"))


def test_older_checkpoints_with_a_path_are_read(made, tmp_path):
    encoder, folder = made.encoder, made.folder
    shutil.copytree(folder, tmp_path / "old")
    (tmp_path / "old" / "local.json").unlink()
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del about["vision_scale"]
    about["encoder"]["vision"] = str(made.tower)
    (tmp_path / "old" / "config.json").write_text(json.dumps(about), encoding="utf-8")
    again = ConceptEncoder.from_pretrained(tmp_path / "old")
    assert artefacts.digest(again.encode(artefacts.PICTURE).vectors) == artefacts.digest(
        encoder.encode(artefacts.PICTURE).vectors
    )
    with pytest.raises(UserError, match="names its vision tower by the path.*save it again"):
        push_to_hub(tmp_path / "old", "me/old")
    about["encoder"]["vision"] = "/not/here/tower"
    (tmp_path / "old" / "config.json").write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(UserError, match="the vision tower 'tower', which is not where it was"):
        ConceptEncoder.from_pretrained(tmp_path / "old")


def test_an_encoder_without_its_branches_is_refused(made, tmp_path, tiny_backbone):
    folder = made.folder
    shutil.copytree(folder, tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "branches")
    with pytest.raises(UserError, match="has branches, but no folder branches"):
        ConceptEncoder.from_pretrained(tmp_path / "half")
    encoder, _ = artefacts.make_encoder(made.tower.parent, tiny_backbone, branch_rank=2)
    with pytest.raises(UserError, match="give it as unet="):
        encoder.save_pretrained(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_card_is_one_that_the_hub_reads(made, tmp_path, monkeypatch):
    encoder, folder = made.encoder, made.folder
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == "someone/tiny" and card.data.library_name == "escdiff"
    assert card.data.pipeline_tag == "text-to-image" and card.data.license == "apache-2.0"
    assert 'from_pretrained("someone/tiny", encoder="REPOSITORY")' in card.text and "rank 2, lora" in card.text
    sent = {}

    def upload(self, repo_id, folder_path, commit_message):
        sent.update({str(p.relative_to(folder_path)): p.read_bytes() for p in folder_path.rglob("*") if p.is_file()})
        return SimpleNamespace(commit_url="https://hub/x")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, repo, private, exist_ok: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    push_to_hub(folder, "me/encoder")
    assert sorted(sent) == ["README.md", "branches/appearance.safetensors", "branches/shape.safetensors", "config.json",
                            "model.safetensors"]  # fmt: skip
    assert b'encoder="me/encoder"' in sent["README.md"] and str(folder.parent).encode() not in b"".join(sent.values())
    encoder.base_model = str(folder)  # a folder of this machine is no base model on the hub
    encoder.save_pretrained(tmp_path / "local", made.unet)
    assert ModelCard.load(tmp_path / "local" / "README.md").data.base_model is None
    encoder.base_model = "someone/tiny"


def test_a_card_that_the_hub_refuses_is_one_sentence(made, monkeypatch):
    def refuse(self, **_):
        raise ValueError("- Error: metadata: not allowed")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, repo, private, exist_ok: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", refuse)
    with pytest.raises(UserError, match="the hub refused 'me/encoder'.*not allowed"):
        push_to_hub(made.folder, "me/encoder")


def test_what_opens_the_hub_reaches_the_encoders_download(tiny_folder, tmp_path, monkeypatch):
    """The hub's client is the seam; a revision is the pipeline's own."""
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        raise OSError("enough")

    monkeypatch.setattr("escdiff.encoder.hub.snapshot_download", download)
    options = {"token": "secret", "cache_dir": str(tmp_path), "local_files_only": True}
    with pytest.raises(UserError, match="no folder 'me/encoder'"):
        ESCDiffPipeline.from_pretrained(tiny_folder, encoder="me/encoder", revision="v1", **options)
    assert asked["name"] == "me/encoder" and options.items() <= asked.items() and "revision" not in asked


def test_a_pictures_transparency_is_its_mask_however_it_is_given(made, tiny_folder, tmp_path):
    levels = np.random.default_rng(1).integers(0, 255, (48, 64, 4), np.uint8)
    levels[:, :40, 3] = 0
    picture = Image.fromarray(levels, "RGBA")
    picture.save(tmp_path / "mug.png")
    pipeline = ESCDiffPipeline.from_pretrained(tiny_folder, encoder=made.folder)
    expected = pipeline.concept_encoder.encode(picture, attributes=("shape",)).vectors["shape"]
    opaque = pipeline.concept_encoder.encode(picture.convert("RGB"), attributes=("shape",)).vectors["shape"]
    assert not torch.equal(expected, opaque)
    for given in (picture, tmp_path / "mug.png", str(tmp_path / "mug.png")):
        assert torch.equal(pipeline.encode_references(shape=given).vectors["shape"], expected)


def test_weights_of_another_kind_are_no_encoder(made, tmp_path):
    shutil.copytree(made.folder, tmp_path / "encoder")
    save_file({"x": torch.zeros(1)}, tmp_path / "encoder" / "model.safetensors")
    concept = made.encoder.encode(artefacts.PICTURE)
    for read in (ConceptEncoder.from_pretrained, lambda folder: read_gates(folder, concept)):
        with pytest.raises(UserError, match="model.safetensors is no encoder"):
            read(tmp_path / "encoder")
