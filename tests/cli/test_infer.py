"""The door of inference, on a tiny backbone saved to disk."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

from escdiff.backbone import load_backbone
from escdiff.cli import infer
from escdiff.cli.compose import compose
from escdiff.concept import Concept
from escdiff.conditioning import ConditioningSpace
from escdiff.encoder import ConceptEncoder
from escdiff.encoder.encoder import EncoderConfig
from escdiff.encoder.vision import load_vision
from escdiff.errors import UserError

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
    return infer.run(compose("infer", [*common, *arguments], infer.TEXTS))


@pytest.mark.parametrize("given", ["encoder={folder}/enc", "encoder=null"])
def test_the_door_takes_an_encoder_by_its_folder(folder, tiny_folder, tmp_path, given):
    """`encoder` is a group of the training's configuration and a key of this one."""
    reference = folder / "pictures" / "b.png"
    argv = [f"shape={reference}", "steps=1", "num_images=1", f"out={tmp_path / 'o'}", given.format(folder=folder)]
    infer._main([*argv, *([f"backbone.name={tiny_folder}"] if "null" not in given else [])])
    assert json.loads((tmp_path / "o" / "run.json").read_text())["pictures"] == 1


def test_the_overview(folder, tiny_folder, tmp_path):
    out = run(folder, tiny_folder, f"references={folder / 'pictures'}", f"out={tmp_path / 'o'}")
    about = json.loads((out / "run.json").read_text())
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


def test_files_of_one_attribute_each_are_the_two_pictures_together(folder, tiny_folder, tmp_path):
    pictures = {"shape": folder / "pictures" / "a [1], red=blue.png", "appearance": folder / "pictures" / "b.png"}
    both = run(folder, tiny_folder, *(f"{a}={path}" for a, path in pictures.items()), f"out={tmp_path / 'both'}")
    files = []
    for attribute, path in pictures.items():
        out = run(folder, tiny_folder, f"{attribute}={path}", f"out={tmp_path / attribute}")
        files.append(f"{attribute}={out / path.stem}.safetensors")
    prompt = json.loads((both / "run.json").read_text())["prompts"][0]
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
    assert f"<{attribute}>" in json.loads((out / "run.json").read_text())["prompts"][0]


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
    assert not (tmp_path / "out").exists()


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
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / door, "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert time.perf_counter() - start < 30  # generous: a slow machine is no failure, see the imports instead
    assert not any(f" {name}\n" in done.stderr for name in ("torch", "diffusers", "transformers", "lightning"))
    assert "python " + door in done.stdout


def test_the_exit_status_of_a_mistake(tmp_path):
    command = [sys.executable, ROOT / "infer.py", "stepz=3"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "steps" in done.stderr and "Traceback" not in done.stderr
