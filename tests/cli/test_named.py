"""Several references in one prompt: each read in one pass, parts of one picture by masks."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

from escdiff.backbone import load_backbone
from escdiff.cli import infer
from escdiff.concept import Concept
from escdiff.encoder import ConceptEncoder, EncoderConfig, load_vision
from escdiff.pipelines.load_concept import loaded
from escdiff.support.config.compose import compose
from escdiff.support.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_folder):
    """Pictures and masks, and an encoder for the tiny backbone."""
    root = tmp_path_factory.mktemp("named")
    torch.manual_seed(0)
    config = CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
                              image_size=32, patch_size=8)  # fmt: skip
    CLIPVisionModel(config).save_pretrained(root / "tower")
    backbone = load_backbone(tiny_folder)
    settings = EncoderConfig(
        vision=str(root / "tower"), shape_depths=(1, 2), appearance_depths=(0, 1), features=16, rank=2
    )
    made = ConceptEncoder.for_backbone(settings, load_vision(settings.vision), backbone, backbone.p_plus())
    for parameter in made.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    made.save_pretrained(root / "enc")
    rng = np.random.default_rng(0)
    for name in ("mug", "dog"):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(root / f"{name}.png")
    for name, where in (("left", slice(0, 20)), ("right", slice(20, 40))):
        mask = np.zeros((40, 40), np.uint8)
        mask[:, where] = 255
        Image.fromarray(mask).save(root / f"{name}.png")
    return root


@pytest.fixture
def run(folder, tiny_folder, tmp_path):
    def start(*arguments, out="out"):
        common = [f"backbone.name={tiny_folder}", f"encoder={folder / 'enc'}", "steps=1", "num_images=1"]
        arguments = [argument.format(folder=folder) for argument in arguments]
        return infer.run(compose("infer", [*common, *arguments, f"out={tmp_path / out}"]))

    return start


def picture(out):
    return np.asarray(Image.open(out / "picture-000.png"))


@pytest.mark.slow
def test_two_pictures_are_what_their_two_concept_files_are(run, folder):
    prompt = "prompt=a <mug> beside a <dog-appearance> <mug-shape>"
    out = run("concept=mug={folder}/mug.png,dog={folder}/dog.png", prompt)
    alone = [Concept.load(out / f"{name}.safetensors") for name in ("mug", "dog")]
    encoder = ConceptEncoder.from_pretrained(folder / "enc")
    for name, concept in zip(("mug", "dog"), alone, strict=True):
        expected = encoder.encode(Image.open(folder / f"{name}.png").convert("RGB"))
        for attribute in ("shape", "appearance"):
            assert torch.allclose(concept.vectors[attribute], expected.vectors[attribute], atol=1e-2)
    files = run(f"concept=mug={out}/mug.safetensors,dog={out}/dog.safetensors", prompt, out="files")
    mixed = run(f"concept=mug={out}/mug.safetensors,dog={{folder}}/dog.png", prompt, out="mixed")
    assert np.array_equal(picture(out), picture(files)) and np.array_equal(picture(out), picture(mixed))
    joined = Concept.load(files / "mug-dog.safetensors")
    assert joined.attributes == ("mug", "mug-shape", "mug-appearance", "dog", "dog-shape", "dog-appearance")
    about = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert about["prompts"] == [prompt.removeprefix("prompt=")]
    assert (
        "a photo of a <mug> and a <dog>"
        in json.loads(
            (run("concept=mug={folder}/mug.png,dog={folder}/dog.png", out="plain") / "run.json").read_text(
                encoding="utf-8"
            )
        )["prompts"]
    )


def test_parts_of_one_picture_are_told_apart_by_their_masks(run, folder):
    given = "concept=a={folder}/mug.png,b={folder}/mug.png"
    out = run(given, "mask=a={folder}/left.png,b={folder}/right.png", "prompt=a <a> beside a <b>")
    found = {name: Concept.load(out / f"{name}.safetensors").vectors["shape"] for name in ("a", "b")}
    assert not torch.allclose(found["a"], found["b"], atol=1e-3)
    half = run("shape={folder}/mug.png", "mask={folder}/left.png", "prompt=a <shape>", out="half")
    assert torch.equal(found["a"], Concept.load(half / "mug.safetensors").vectors["shape"])
    one = run(given, "mask=a={folder}/left.png", "prompt=a <a> beside a <b>", out="one")
    assert torch.equal(Concept.load(one / "a.safetensors").vectors["shape"], found["a"])


@pytest.mark.slow
def test_strength_is_of_every_reference(run):
    given = ["concept=a={folder}/mug.png,b={folder}/dog.png", "prompt=a <a> beside a <b>"]
    none = ["strength.shape=0", "strength.appearance=0"]
    swapped = ["concept=a={folder}/dog.png,b={folder}/mug.png", "prompt=a <a> beside a <b>"]
    assert not np.array_equal(picture(run(*given)), picture(run(*swapped, out="swapped")))
    assert np.array_equal(picture(run(*given, *none, out="none")), picture(run(*swapped, *none, out="both")))


def test_a_control_takes_named_references(run):
    out = run("concept=a={folder}/mug.png,b={folder}/dog.png", "prompt=a <a> beside a <b>", "control=boxes",
              "boxes=<a>=0,0,.5,1;<b>=.5,0,1,1")  # fmt: skip
    assert (out / "picture-000.png").is_file()


def test_routed_branches_act_at_the_parts_of_named_references(tiny_backbone):
    from escdiff.pipelines.words import words_of

    vectors = {f"<mug{part}>": torch.zeros(1, 16, 1, k, 32) for part, k in (("-shape", 2), ("-appearance", 3), ("", 5))}
    pipeline = tiny_backbone.pipeline()
    with loaded(pipeline, vectors, tiny_backbone.p_plus()):
        (entry,) = words_of(pipeline).loaded.values()
    assert entry.parts["<mug-shape>"] == [("shape", 2)] and entry.parts["<mug>"] == [("shape", 2), ("appearance", 3)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["concept=a={folder}/mug.png,b={folder}/dog.png", "prompt=a <a> alone"], "b= was given"),
        (["concept=a={folder}/mug.png,b={folder}/dog.png", "mask={folder}/left.png"], "with 2 pictures"),
        (["concept=a={folder}/mug.png,b={folder}/dog.png", "mask=c={folder}/left.png"], "names 'c'"),
        (["concept=a={folder}/mug.png,a={folder}/dog.png"], "one name"),
        (["concept=a={folder}/gone.png,b={folder}/dog.png"], "gone.png"),
        (["concept={folder}/mug.png"], "no safetensors file"),
    ],
)
def test_refused_in_one_sentence(run, arguments, words):
    with pytest.raises(UserError) as caught:
        run(*arguments)
    assert words in str(caught.value) and "\n" not in str(caught.value)
