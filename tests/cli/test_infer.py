"""The door of inference, on a tiny backbone saved to disk."""

import errno
import json
import os
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import Decoder
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

from escdiff import backbone as backbone_module
from escdiff.backbone import load_backbone
from escdiff.cli import infer
from escdiff.cli.results import file_stem
from escdiff.concept import Concept
from escdiff.conditioning import ConditioningSpace
from escdiff.encoder import ConceptEncoder
from escdiff.encoder.vision import load_vision
from escdiff.support.config.compose import compose
from escdiff.support.config.encoder import EncoderConfig
from escdiff.support.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_folder):
    """Pictures, an encoder for the tiny backbone, and room for results."""
    root = tmp_path_factory.mktemp("infer")
    config = CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
                              image_size=32, patch_size=16)  # fmt: skip
    CLIPVisionModel(config).save_pretrained(root / "tower")
    backbone = load_backbone(tiny_folder)
    settings = EncoderConfig(
        vision=str(root / "tower"), shape_depths=(1, 2), appearance_depths=(0, 1), features=16, rank=2
    )
    space = ConditioningSpace.p_plus(backbone.unet)
    ConceptEncoder.for_backbone(settings, load_vision(settings.vision), backbone, space).save_pretrained(root / "enc")
    rng = np.random.default_rng(0)
    for name in ("a [1], red=blue.png", "b.png"):
        (root / "pictures").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(root / "pictures" / name)
    return root


def run(folder, tiny_folder, *arguments) -> Path:
    common = [f"backbone.name={tiny_folder}", f"encoder={folder / 'enc'}", "steps=1", "num_images=2"]
    return infer.run(compose("infer", [*common, *arguments]))


@pytest.mark.parametrize("given", ["encoder={folder}/enc", "encoder=null"])
def test_the_door_takes_an_encoder_by_its_folder(folder, tiny_folder, tmp_path, given):
    """`encoder` is a group of the training's configuration and a key of this one."""
    reference = folder / "pictures" / "b.png"
    argv = [f"shape={reference}", "steps=1", "num_images=1", f"out={tmp_path / 'o'}", given.format(folder=folder)]
    infer._main([*argv, *([f"backbone.name={tiny_folder}"] if "null" not in given else [])])
    assert json.loads((tmp_path / "o" / "run.json").read_text(encoding="utf-8"))["pictures"] == 1


@pytest.mark.parametrize("backbone", ["sd14", "sd15", "sd21"])
def test_every_backbones_group_is_one_of_this_door_too(folder, tiny_folder, tmp_path, backbone):
    """Those groups have lists for the training's encoder (`shape_depths`), and a tower, which an encoder brings."""
    given = [f"backbone={backbone}", "backbone.dtype=float32", f"shape={folder / 'pictures' / 'b.png'}", "num_images=1"]
    assert (run(folder, tiny_folder, *given, f"out={tmp_path / 'o'}") / "grid.png").is_file()


def test_the_overview(folder, tiny_folder, tmp_path):
    out = run(folder, tiny_folder, f"references={folder / 'pictures'}", f"out={tmp_path / 'o'}")
    about = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert about["pictures"] == 2 * 6 and set(about["seconds"]) == {"read", "load", "encode", "paint", "write"}
    assert len(list(out.glob("picture-*.png"))) == 12 and (out / "grid.png").is_file()
    concept = Concept.load(out / "b.safetensors")
    assert concept.attributes == ("shape", "appearance") and concept.space.num_layers == 16
    assert not any(vectors.requires_grad for vectors in concept.vectors.values())


def test_shape_and_appearance_of_two_pictures_and_the_concept_file_again(folder, tiny_folder, tmp_path):
    pictures = folder / "pictures"
    given = [f"shape={pictures / 'a [1], red=blue.png'}", f"appearance={pictures / 'b.png'}"]
    prompt = "prompt=a <shape>, made of <appearance> (really) = good"
    out = run(folder, tiny_folder, *given, prompt, f"out={tmp_path / '1'}")
    stem = "a [1], red=blue-b"
    assert (out / f"{stem}.safetensors").is_file()
    again = run(folder, tiny_folder, f"concept={out / stem}.safetensors", prompt, f"out={tmp_path / '2'}")
    pixels = [np.asarray(Image.open(o / "picture-001.png")) for o in (out, again)]
    assert (pixels[0] == pixels[1]).all()
    weak = run(folder, tiny_folder, *given, prompt, "strength.shape=0.3", f"out={tmp_path / '3'}")
    assert (np.asarray(Image.open(weak / "picture-001.png")) != pixels[0]).any()


def test_a_concept_of_the_hub_by_its_name(folder, tiny_folder, tmp_path, monkeypatch):
    """From the hub's cache, since tests have no network."""
    exact = "concept_dtype=float32"
    out = run(folder, tiny_folder, f"shape={folder / 'pictures' / 'b.png'}", exact, f"out={tmp_path / '1'}")
    snapshot = tmp_path / "hub" / "models--me--concepts" / "snapshots" / ("0" * 40)
    (snapshot.parents[1] / "refs").mkdir(parents=True)
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    shutil.copytree(out, snapshot, ignore=shutil.ignore_patterns("*.png"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    again = run(folder, tiny_folder, "concept=me/concepts/b", "prompt=a photo of a <shape>", f"out={tmp_path / '2'}")
    assert (again / "picture-000.png").read_bytes() == (out / "picture-000.png").read_bytes()
    run(folder, tiny_folder, "concept=cup=me/concepts/b", "prompt=a <cup>", f"out={tmp_path / '3'}")
    with pytest.raises(UserError, match="has no concept 'x.safetensors'"):
        run(folder, tiny_folder, "concept=me/concepts/x", f"out={tmp_path / '4'}")


@pytest.mark.slow
def test_files_of_one_attribute_each_are_the_two_pictures_together(folder, tiny_folder, tmp_path):
    pictures = {"shape": folder / "pictures" / "a [1], red=blue.png", "appearance": folder / "pictures" / "b.png"}
    both = run(folder, tiny_folder, *(f"{a}={path}" for a, path in pictures.items()), f"out={tmp_path / 'both'}")
    files = []
    for attribute, path in pictures.items():
        out = run(folder, tiny_folder, f"{attribute}={path}", f"out={tmp_path / attribute}")
        files.append(f"{attribute}={out / path.stem}.safetensors")
    prompt = json.loads((both / "run.json").read_text(encoding="utf-8"))["prompts"][0]
    again = run(folder, tiny_folder, *files, f"prompt={prompt}", "mix=0.2", f"out={tmp_path / 'files'}")
    pixels = [np.asarray(Image.open(o / "picture-001.png")) for o in (both, again)]
    assert (pixels[0] == pixels[1]).all()


def test_a_concept_of_one_placeholder_is_split_by_the_encoders_gates(folder, tiny_folder, tmp_path):
    backbone = load_backbone(tiny_folder)
    gates = ConceptEncoder.from_pretrained(folder / "enc", backbone).gates()
    space, word = backbone.p_plus(), backbone.prompts.word_embedding("object")
    vectors = {"concept": torch.randn(16, 1, 1, backbone.width)}
    concept = Concept(vectors, {"concept": word}, space, backbone.name, backbone.text_hash)
    concept.save(tmp_path / "word.safetensors")
    given = (f"concept={tmp_path / 'word.safetensors'}", "prompt=a <shape>", "mix=gates")
    out = run(folder, tiny_folder, *given, f"out={tmp_path / 'out'}")
    found = Concept.load(out / "word.safetensors").vectors["shape"]
    share = (gates["shape"] / (gates["shape"] + gates["appearance"]))[..., None, None]
    assert torch.allclose(found, torch.lerp(word.expand_as(found), vectors["concept"], share), atol=1e-2)


@pytest.mark.parametrize("attribute", ["shape", "appearance"])
def test_one_attribute_alone(folder, tiny_folder, tmp_path, attribute):
    out = run(folder, tiny_folder, f"{attribute}={folder / 'pictures' / 'b.png'}", f"out={tmp_path}")
    assert Concept.load(out / "b.safetensors").attributes == (attribute,)
    assert f"<{attribute}>" in json.loads((out / "run.json").read_text(encoding="utf-8"))["prompts"][0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["shape=nowhere.png"], "no image at nowhere.png"),
        (["references=nowhere"], "not a folder"),
        (["prompt=a <shape>"], "without a picture"),
        (["shape={b}", "prompt=a cat"], "no placeholder"),
        (["shape={b}", "prompt=a <shape> and <colour>"], "<colour>"),
        (["shape={b}", "appearance={b}", "prompt=a <shape>"], "no <appearance>"),
        (["shape={b}", "prompt=" + "very " * 80 + "<shape>"], "token"),
        (["shape={b}", "concept=x"], "both given"),
        (["concept=nowhere.safetensors"], "no concept file"),
        (["concept={b}"], "no safetensors file"),
        (["num_images=0"], "num_images=0"),
        (["steps=many"], "steps=many"),
        (["steps=1001", "shape={b}"], "at most 1000"),
        (["strength=0.5"], "strength.shape"),
        (["strength.shape=null"], "strength.shape=None"),
        (["device=3"], "device=3"),
        (["backbone.dtype=float64"], "float64"),
        (["out={b}/sub"], "is a file"),
        (["out="], "out=None"),
        (["out={b}-new/" + 300 * "x"], "name another folder"),
        (["shape={b}", "size=100"], "size=100 given; expected a multiple of 8 pixels, such as 96"),
        (["shape={b}", "height=0"], "height=0 given; expected null or a whole number, 8 or more"),
        (["matmul_precision=low"], "expected highest, high or medium"),
        (["concept=,"], "names no file"),
        (["concept=x.safetensors", "mix=foo"], "mix=foo"),
        (["shape=x.safetensors", "appearance=x.safetensors", "mask=auto"], "mask=auto"),
        (["encoder={b}"], "no encoder"),
        (["device=abacus"], "device=abacus"),
        (["encoder=nowhere"], "no encoder in nowhere"),
    ],
)
def test_refused_in_one_sentence_and_nothing_is_written(folder, tiny_folder, tmp_path, arguments, words):
    arguments = [a.replace("{b}", str(folder / "pictures" / "b.png")) for a in arguments]
    with pytest.raises(UserError) as caught:
        run(folder, tiny_folder, f"out={tmp_path / 'out'}", *arguments)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() and not list((folder / "pictures").glob("*-new"))


def test_a_second_run_in_the_same_folder_loses_and_mixes_nothing(folder, tiny_folder, tmp_path):
    """Two references of one name, too: the second concept does not replace the first."""
    out, shown = tmp_path / "o", {}
    for number, source in enumerate(("a [1], red=blue.png", "b.png")):
        (tmp_path / f"{number}").mkdir()
        shutil.copy(folder / "pictures" / source, tmp_path / f"{number}" / "front.png")
        run(folder, tiny_folder, f"shape={tmp_path}/{number}/front.png", f"num_images={3 - number}", f"out={out}")
        shown[number] = {p.name: p.read_bytes() for p in out.iterdir() if p.is_file()}
    assert set(shown[0]) == {"front.safetensors", "grid.png", "run.json", *(f"picture-{i:03d}.png" for i in range(3))}
    assert set(shown[1]) == {
        "front.safetensors", "front-2.safetensors", "grid.png", "run.json", "picture-000.png", "picture-001.png"
    }  # fmt: skip
    assert json.loads(shown[1]["run.json"])["concepts"] == ["front-2.safetensors"]
    assert shown[1]["front.safetensors"] == shown[0]["front.safetensors"]
    earlier = {p.name: p.read_bytes() for p in (out / "earlier-001").iterdir()}
    assert earlier == {name: data for name, data in shown[0].items() if name != "front.safetensors"}
    run(folder, tiny_folder, f"shape={tmp_path}/0/front.png", "num_images=1", f"out={out}")  # the first once more
    assert json.loads((out / "run.json").read_text(encoding="utf-8"))["concepts"] == ["front.safetensors"]
    assert sorted(p.name for p in out.iterdir() if p.is_dir()) == ["earlier-001", "earlier-002"]


def test_what_cannot_be_written_loses_nothing(folder, tiny_folder, tmp_path, monkeypatch):
    given = (f"shape={folder / 'pictures' / 'b.png'}", f"out={tmp_path}")
    run(folder, tiny_folder, *given)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(self, *_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Concept, "save", full)
    with pytest.raises(UserError, match=r"could not be written .*No space left.*still there"):
        run(folder, tiny_folder, *given)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_references_that_differ_in_their_suffix_keep_rows_and_files_of_their_own(folder, tiny_folder, tmp_path):
    for name in ("a.png", "a.jpg", "b.png"):
        Image.open(folder / "pictures" / "b.png").rotate(90 * len(name)).save(tmp_path / name)
    shutil.copy(tmp_path / "b.png", tmp_path / "b.mask.png")  # no reference, but the mask of one
    out = run(folder, tiny_folder, f"references={tmp_path}", f"out={tmp_path / 'o'}")
    about = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert about["pictures"] == 3 * 6
    assert about["concepts"] == ["a.jpg.safetensors", "a.png.safetensors", "b.safetensors"]


@pytest.mark.parametrize("names", [
    ("x" * 150 + "_a.png", "x" * 150 + "_b.png"),
    (os.fsdecode(b"caf\xe9.png"), os.fsdecode(b"th\xe9.png")),  # Latin-1, as a zip from Windows leaves them
    ("\u676f\u5b50" * 30 + ".png", "t:a*b.png"),
])  # fmt: skip
def test_files_are_named_as_every_file_system_takes_it(folder, tiny_folder, tmp_path, names):
    given = []
    for attribute, name in zip(("shape", "appearance"), names, strict=True):
        shutil.copy(folder / "pictures" / "b.png", tmp_path / name)
        given.append(f"{attribute}={tmp_path / name}")
    out = run(folder, tiny_folder, *given, f"out={tmp_path / 'o'}")
    (file,) = json.loads((out / "run.json").read_bytes())["concepts"]
    assert len(file.encode()) < 143 and not set(file) & set('/\\:*?"<>|') and file.isprintable()
    assert Concept.load(out / file).attributes == ("shape", "appearance")
    assert file_stem("a [1], red=blue") == "a [1], red=blue"


@pytest.mark.slow
def test_values_of_one_sort_are_read_alike(folder, tiny_folder, tmp_path, monkeypatch):
    """`~` and quotes in every path, and a name for one concept as for two."""
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(folder / "pictures" / "b.png", tmp_path / "b.png")
    out = run(folder, tiny_folder, "shape=~/b.png", "appearance='~/b.png'", "out=~/o")
    assert out == tmp_path / "o"
    for given in ("concept=~/o/b.safetensors", "concept='~/o/b.safetensors'"):
        again = run(folder, tiny_folder, given, "out=~/p")
        assert (again / "picture-000.png").read_bytes() == (out / "picture-000.png").read_bytes()
    run(folder, tiny_folder, "concept=cup=~/o/b.safetensors", "prompt=a <cup>", "out=~/q")
    assert Concept.load(tmp_path / "q" / "b.safetensors").attributes == ("cup", "cup-shape", "cup-appearance")
    run(folder, tiny_folder, "shape=~/o/b.safetensors", "appearance=~/o/b.safetensors", "out=~/r")


def test_the_size_is_painted(folder, tiny_folder, tmp_path):
    given = (f"shape={folder / 'pictures' / 'b.png'}", f"out={tmp_path}", "num_images=1", "size=64", "width=96")
    assert Image.open(run(folder, tiny_folder, *given) / "picture-000.png").size == (96, 64)


def test_the_encoder_is_gone_before_the_backbone_is_read(folder, tiny_folder, tmp_path, monkeypatch):
    """The tower of SD 1.5 takes 1.2 GB, its U-Net 3.4: not both at once."""
    read, alive = [], []
    load, from_pretrained = backbone_module.load_backbone, ConceptEncoder.from_pretrained

    def load_encoder(*args, **kwargs):
        encoder = from_pretrained(*args, **kwargs)
        read.extend((weakref.ref(encoder), weakref.ref(encoder.vision)))
        return encoder

    def load_backbone(*args, **kwargs):
        alive.extend(reference() is not None for reference in read)
        return load(*args, **kwargs)

    monkeypatch.setattr(ConceptEncoder, "from_pretrained", load_encoder)
    monkeypatch.setattr(backbone_module, "load_backbone", load_backbone)
    run(folder, tiny_folder, f"shape={folder / 'pictures' / 'b.png'}", f"out={tmp_path / 'o'}")
    assert alive == [False, False]


def test_pictures_are_decoded_one_by_one_on_a_cpu(folder, tiny_folder, tmp_path, monkeypatch):
    decode, seen = Decoder.forward, []
    monkeypatch.setattr(Decoder, "forward", lambda self, z, *rest: seen.append(len(z)) or decode(self, z, *rest))
    run(folder, tiny_folder, f"shape={folder / 'pictures' / 'b.png'}", f"out={tmp_path / 'o'}")
    assert seen == [1, 1]


def test_customization_takes_one_forward_pass_and_no_gradient(folder, tiny_folder, monkeypatch):
    backbone = load_backbone(tiny_folder)
    encoder = ConceptEncoder.from_pretrained(folder / "enc", backbone)

    def forbidden(*args, **kwargs):
        raise AssertionError("customization must not optimize")

    monkeypatch.setattr(torch.Tensor, "backward", forbidden)
    monkeypatch.setattr(torch.autograd, "grad", forbidden)
    monkeypatch.setattr(torch.optim.Optimizer, "__init__", forbidden)
    passes = []
    encoder.vision.register_forward_hook(lambda *_: passes.append(torch.is_grad_enabled()))
    concept = encoder.encode(Image.open(folder / "pictures" / "b.png").convert("RGB"))
    assert passes == [False]
    assert all(vectors.grad_fn is None for vectors in concept.vectors.values())


@pytest.mark.parametrize("door", ["train.py", "infer.py"])
def test_help_is_fast_and_imports_nothing_heavy(door):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / door, "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert not any(f" {name}\n" in done.stderr for name in ("torch", "diffusers", "transformers", "lightning"))
    assert "python " + door in done.stdout


def test_the_exit_status_of_a_mistake(tmp_path):
    command = [sys.executable, ROOT / "infer.py", "stepz=3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "steps" in done.stderr and "Traceback" not in done.stderr
