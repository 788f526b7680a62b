"""`python infer.py control=...` and `edit=...`, on a tiny backbone saved to disk."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

from escdiff.backbone import load_backbone
from escdiff.backbone.adapters.wide_input import widened
from escdiff.cli import infer
from escdiff.encoder import load_vision
from escdiff.pipelines.instruct import make_instruct
from escdiff.pipelines.placer import Placer
from escdiff.support.config.compose import compose
from escdiff.support.errors import UserError


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A red square on grey, and a mask of it."""
    folder = tmp_path_factory.mktemp("photo")
    pixels = np.full((128, 128, 3), 128, np.uint8)
    pixels[40:90, 40:90] = (200, 20, 20)
    Image.fromarray(pixels).save(folder / "photo.png")
    Image.fromarray(((pixels[..., 1] < 100) * 255).astype(np.uint8)).save(folder / "mask.png")
    return folder


def run(tiny_folder, *arguments):
    arguments = [f"backbone.name={tiny_folder}", "steps=2", "device=cpu", *arguments]
    return infer.run(compose("infer", arguments))


def pixels(out, number=0):
    return np.asarray(Image.open(out / f"picture-{number:03d}.png")).astype(int)


@pytest.mark.slow
def test_a_control_without_a_reference_paints_in_batches(tiny_folder, tmp_path):
    prompt = "prompt=a red mug and a blue chair"
    given = ["control=conform", "groups=red mug; blue chair", prompt, "num_images=2", "control.refinements=0"]
    outs = [run(tiny_folder, *given, f"control.size={size}", f"out={tmp_path / size}") for size in ("0", "500")]
    stock, steered = (pixels(out, 1) for out in outs)
    assert (stock != steered).any()
    assert json.loads((outs[1] / "run.json").read_text(encoding="utf-8"))["config"]["control"]["name"] == "conform"
    boxed = run(tiny_folder, "control=boxes", "boxes=mug=0,0,.5,1", prompt, "num_images=1", f"out={tmp_path / 'box'}")
    excited = run(
        tiny_folder, "control=attend_excite", "groups=mug", "control.refinements=0", prompt, "num_images=1",
        f"out={tmp_path / 'ae'}",
    )  # fmt: skip
    assert pixels(boxed).shape == pixels(excited).shape == (128, 128, 3)


@pytest.mark.slow
def test_a_control_paints_the_sides_that_were_asked_for(tiny_folder, tmp_path):
    given = ["prompt=a red mug and a blue chair", "num_images=1"]
    wide = ["height=64", "width=128"]
    for control in (["control=boxes", "boxes=mug=0,0,.5,1"], ["control=conform", "groups=red mug; blue chair"]):
        control += ["control.layers=2", "control.until=1"]
        out, stock = (
            run(tiny_folder, *control, *given, *wide, own, f"out={tmp_path / own}")
            for own in (f"control.{'weight' if 'boxes' in control[0] else 'size'}={value}" for value in (100, 0))
        )
        assert pixels(out).shape == (64, 128, 3) and (pixels(out) != pixels(stock)).any()
    square = run(tiny_folder, *control, *given, "size=64", f"out={tmp_path / 'square'}")
    assert pixels(square).shape == (64, 64, 3)


@pytest.mark.slow
@pytest.mark.parametrize("edit", ["plug_and_play", "pix2pix_zero"])
def test_an_edit_changes_the_picture_inside_of_its_mask(tiny_folder, tmp_path, photo, edit):
    given = [f"picture={photo / 'photo.png'}", "source=a red square", "prompt=a blue square", f"edit={edit}"]
    whole = run(tiny_folder, *given, f"out={tmp_path / '1'}")
    part = run(tiny_folder, *given, f"edit.mask={photo / 'mask.png'}", f"out={tmp_path / '2'}")
    assert len(list(whole.glob("picture-*.png"))) == 1
    assert (pixels(whole) != pixels(part)).any()
    photo_pixels = np.asarray(Image.open(photo / "photo.png")).astype(int)
    same = (pixels(part) == photo_pixels).all(-1)
    assert same[:30].all() and same[:, 100:].all() and not same[50:80, 50:80].all()
    grid = Image.open(whole / "grid.png")
    assert grid.height > 2 * 128  # the photo above the edit


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_folder):
    """Folders of an InstructPix2Pix and of an AnyDoor, untrained but for what makes them act."""
    root, backbone = tmp_path_factory.mktemp("models"), load_backbone(str(tiny_folder))
    unet = widened(backbone.unet, 8).eval()
    torch.nn.init.normal_(unet.conv_in.weight[:, 8:], std=0.3)
    make_instruct(backbone, unet).save_pretrained(root / "instruct")
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    CLIPVisionModel(CLIPVisionConfig(**tower, image_size=32, patch_size=16)).save_pretrained(root / "tower")
    Placer.fresh(backbone.unet, load_vision(str(root / "tower"))).save_pretrained(root / "anydoor")
    return root


def test_an_instruction_changes_the_picture_inside_of_its_mask(tiny_folder, tmp_path, photo, models):
    given = [f"picture={photo / 'photo.png'}", "prompt=make it blue", "edit=instruct_pix2pix", "num_images=2",
             f"edit.model={models / 'instruct'}"]  # fmt: skip
    whole = run(tiny_folder, *given, f"out={tmp_path / '1'}")
    part = run(tiny_folder, *given, f"edit.mask={photo / 'mask.png'}", f"out={tmp_path / '2'}")
    assert len(list(whole.glob("picture-*.png"))) == 2 and (pixels(whole) != pixels(whole, 1)).any()
    same = (pixels(part) == np.asarray(Image.open(photo / "photo.png"))).all(-1)
    assert same[:30].all() and not same[50:80, 50:80].all()


def test_an_object_is_put_into_its_box(tiny_folder, tmp_path, photo, models):
    given = [f"picture={photo / 'photo.png'}", "edit=anydoor", f"edit.model={models / 'anydoor'}", "num_images=1",
             f"edit.reference={photo / 'photo.png'}", f"edit.mask={photo / 'mask.png'}",
             f"encoder.vision={models / 'tower'}"]  # fmt: skip
    out = run(tiny_folder, *given, "edit.box=[.0,.0,.5,.5]", f"out={tmp_path / '1'}")
    same = (pixels(out) == np.asarray(Image.open(photo / "photo.png"))).all(-1)
    assert same[70:].all() and same[:, 70:].all() and not same[10:50, 10:50].all()
    with pytest.raises(UserError, match="inside of the picture"):
        run(tiny_folder, *given, "edit.box=[.0,.0,1.5,.5]", f"out={tmp_path / '2'}")
    assert not (tmp_path / "2").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["control=conform", "groups=mug"], "needs prompt="),
        (["control=conform", "prompt=a mug"], "needs groups="),
        (["control=boxes", "prompt=a mug", "boxes=mug=0,0,2,1"], "inside of the picture"),
        (["control=conform", "prompt=a mug", "groups=mug"], "expected two or more"),
        (["control=conform", "prompt=a mug", "groups=mug; dog"], "'dog' is not in the prompt"),
        (["control=conform", "prompt=a mug", "groups=mug", "boxes=mug=0,0,1,1"], "does not read"),
        (["control=conform", "edit=plug_and_play", "prompt=a mug", "groups=mug"], "expected one of them"),
        (["groups=mug", "prompt=a mug"], "without a control"),
        (["picture={photo}", "prompt=a mug"], "without a control"),
        (["edit=plug_and_play", "prompt=a mug"], "needs picture="),
        (["edit=plug_and_play", "picture={photo}", "prompt=a mug"], "needs source="),
        (["edit=plug_and_play", "picture=nowhere.png", "source=x", "prompt=a mug"], "no image at nowhere.png"),
        (["edit=transfer", "picture={photo}", "source=x", "prompt=a <shape>"], "0 references"),
        (["edit=transfer", "picture={photo}", "source=x", "prompt=a <shape>", "shape={photo}"], "edit.mask=FILE"),
        (["edit=instruct_pix2pix", "picture={photo}", "prompt=make it red"], "needs edit.model="),
        (["edit=instruct_pix2pix", "picture={photo}", "edit.model=nowhere"], "needs prompt="),
        (["edit=instruct_pix2pix", "picture={photo}", "prompt=x", "edit.model=nowhere"], "no InstructPix2Pix model"),
        (["edit=instruct_pix2pix", "picture={photo}", "prompt=x", "edit.model=x", "source=a mug"], "does not read"),
        (["edit=instruct_pix2pix", "picture={photo}", "prompt=x", "edit.model=x", "shape={photo}"], "does not read"),
        (["edit=instruct_pix2pix", "picture=nowhere.png", "prompt=x", "edit.model=x"], "no image at nowhere.png"),
        (["edit=instruct_pix2pix", "picture={photo}", "prompt=x", "edit.model=x", "edit.mask=m.png"], "no image at m"),
        (["edit=anydoor", "picture={photo}", "edit.model=nowhere"], "needs edit.reference="),
        (["edit=anydoor", "picture={photo}", "edit.model=x", "edit.reference=away.png"], "no image at away.png"),
        (["edit=anydoor", "picture={photo}", "edit.model=x", "edit.reference={photo}"], "no AnyDoor model"),
        (["control=boxes", "prompt=a mug", "boxes=;"], "no box was given"),
        (["control=boxes", "prompt=a mug", "boxes=mug=0,0,1,1", "size=60"], "size=60"),
        (["edit=plug_and_play", "picture={photo}", "source=x", "prompt=a mug", "size=64"], "size=64 was given"),
        (["edit=anydoor", "picture={photo}", "edit.model=x", "edit.reference={photo}", "width=64"], "width=64 was"),
        (["edit=instruct_pix2pix", "picture={photo}", "prompt=x", "edit.model=x", "height=64"], "height=64 was"),
        (["edit=pix2pix_zero", "picture={photo}", "source=x", "prompt=a mug", "num_images=2"], "num_images=2 was"),
        (["control=conform", "control.until=2", "prompt=a mug", "groups=mug"], "until=2"),
        (["control=conform", "control.size=big", "prompt=a mug", "groups=mug"], "control.size=big"),
        (["control=conform", "control.sise=1", "prompt=a mug", "groups=mug"], "control.sise"),
    ],
)
def test_refused_in_one_sentence_and_nothing_is_written(tiny_folder, tmp_path, photo, arguments, words):
    arguments = [a.replace("{photo}", str(photo / "photo.png")) for a in arguments]
    with pytest.raises(UserError, match=words) as caught:
        run(tiny_folder, *arguments, f"out={tmp_path / 'out'}")
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()
