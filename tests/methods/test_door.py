"""The doors: every method's YAML, a new method in one file and one YAML, concept files in `infer.py`, bad input."""

import inspect
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from escdiff.cli import infer, train
from escdiff.concept import Concept
from escdiff.methods.build import find_method, make_method
from escdiff.methods.xti import XTI
from escdiff.support.config import compose as compose_module
from escdiff.support.config.compose import compose
from escdiff.support.config.folder import configs_folder
from escdiff.support.errors import UserError
from escdiff.training.method import setup

NAMES = sorted(path.stem for path in (configs_folder() / "method").glob("*.yaml"))
NEW = '''
"""A method that somebody adds."""

from torch import nn

from escdiff.conditioning import ConditioningSpace
from escdiff.methods.base import Method


class Halves(Method):
    """One vector for the first half of the diffusion, one for the second."""

    def __init__(self, backbone, init="object"):
        super().__init__(backbone, ConditioningSpace.build(backbone.unet, "tied", 2), init)
        self.table = nn.Parameter(self.anchor("concept").expand(1, 2, -1, -1).clone())

    def vectors(self, batch):
        return {"concept": self.table[None]}
'''


@pytest.mark.parametrize("name", NAMES)
def test_every_method_composes_and_its_keys_are_its_class_arguments(name):
    config = compose("train", [f"method={name}", "data.references=x"])
    assert config.recipe == "method" and config.run_id == name
    settings = config.method
    kind = find_method(settings.pop("_target_"))
    signature = inspect.signature(kind.__init__).parameters
    assert set(settings) == set(signature) - {"self", "backbone"}
    text = (configs_folder() / "method" / f"{name}.yaml").read_text(encoding="utf-8")
    assert f"python train.py method={name}" in text
    source = inspect.getsource(sys.modules[kind.__module__])
    assert len(source.splitlines()) <= 150
    assert "arXiv" in source[:400] or name == "escdiff_tuned"


def test_a_new_method_is_one_file_and_one_yaml(door, monkeypatch, tmp_path, tiny_folder):
    import escdiff.methods

    (tmp_path / "rooms").mkdir()
    (tmp_path / "rooms" / "halves.py").write_text(NEW, encoding="utf-8")
    shutil.copytree(configs_folder(), tmp_path / "configs")
    (tmp_path / "configs" / "method" / "halves.yaml").write_text(
        "# @package _global_\nrecipe: method\nrun_id: halves\noptim: {ema: 0, warmup: 0}\n"
        "method: {_target_: escdiff.methods.halves.Halves, init: mug}\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(escdiff.methods, "__path__", [*escdiff.methods.__path__, str(tmp_path / "rooms")])
    monkeypatch.setattr(compose_module, "configs_folder", lambda: tmp_path / "configs")
    try:
        concept = Concept.load(door("halves", "method.init=dog") / "export" / "concept.safetensors")
    finally:
        sys.modules.pop("escdiff.methods.halves", None)
    assert concept.vectors["concept"].shape == (1, 2, 1, 32) and concept.notes["method"] == "Halves"
    out = paint(tiny_folder, tmp_path, f"concept={tmp_path / 'run' / 'export' / 'concept.safetensors'}")
    assert (out / "picture-000.png").is_file()


def paint(tiny_folder, tmp_path, *arguments):
    common = [f"backbone.name={tiny_folder}", "steps=1", "num_images=1", f"out={tmp_path / 'pictures'}"]
    return infer.run(compose("infer", [*common, *arguments]))


def pixels(folder):
    return np.asarray(Image.open(folder / "picture-000.png"), int)


@pytest.mark.slow
def test_infer_paints_with_concept_files_of_any_kind(fit, tiny_folder, tmp_path):
    files = {}
    settings = {"xti": [], "matte": [], "custom_diffusion": ["method.prior_weight=0", "optim.lr=0.1"]}
    for name, options in settings.items():
        files[name] = fit(name, *options, folder=name, steps=1) / "export" / "concept.safetensors"
    drawn = {name: pixels(paint(tiny_folder, tmp_path, f"concept={file}")) for name, file in files.items()}
    assert len({picture.tobytes() for picture in drawn.values()}) == 3
    # Without its weights the same words give another picture.
    bare = Concept.load(files["custom_diffusion"])
    bare.notes = {}
    bare.save(tmp_path / "bare.safetensors")
    without = pixels(paint(tiny_folder, tmp_path, f"concept={tmp_path / 'bare.safetensors'}"))
    assert (without != drawn["custom_diffusion"]).any()
    two = f"concept=one={tmp_path / 'bare.safetensors'},two={files['custom_diffusion']}"
    assert paint(tiny_folder, tmp_path, two, "prompt=a <one> and a <two>")
    subset = paint(tiny_folder, tmp_path, f"concept={files['matte']}", "prompt=a <color> mug")
    assert (pixels(subset) != drawn["matte"]).any()


@pytest.mark.slow
def test_infer_mixes_two_concept_files(tiny_backbone, tiny_folder, tmp_path):
    files = []
    for seed in (0, 1):
        method = XTI(tiny_backbone)
        torch.nn.init.normal_(method.table, generator=torch.Generator().manual_seed(seed))
        files.append(tmp_path / f"{'ab'[seed]}.safetensors")
        method.concept().save(files[-1])
    given = [f"shape={files[0]}", f"appearance={files[1]}", "prompt=a <concept>"]
    a, b = (Concept.load(file).vectors["concept"].half().float() for file in files)  # as infer.py writes them
    kept = Concept.load(paint(tiny_folder, tmp_path, *given) / "a-b.safetensors").vectors["concept"]
    assert torch.equal(kept[4:9], a[4:9]) and torch.equal(kept[:4], b[:4])
    slid = Concept.load(paint(tiny_folder, tmp_path, *given, "mix=1.0") / "a-b-2.safetensors")
    assert torch.equal(slid.vectors["concept"], a)
    part = paint(tiny_folder, tmp_path, f"concept={files[0]}", "prompt=a red <shape>")
    assert Concept.load(part / "a.safetensors").attributes == ("shape", "appearance", "concept")
    for arguments, words in ((given[:1], "is a concept file"), ([*given, "mix=middle"], "mix=middle"),
                             ([f"concept=x={files[0]},x={files[1]}"], "one name")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            paint(tiny_folder, tmp_path, *arguments)


@pytest.mark.parametrize(
    ("arguments", "source", "words"),
    [
        ([], "{no_pictures}/note.txt", "not an image"),
        ([], "{no_pictures}", "holds no images"),
        ([], "nowhere", "not a folder"),
        ([], "{many}", "6 reference pictures"),
        ([], None, "no references given"),
        (["method.wings=2"], "{one}", "method.wings"),
        (["+method.wings=2"], "{one}", "method.wings"),
        (["method._target_=os.system"], "{one}", "os.system"),
        (["method._target_=escdiff.methods.xti.Wings"], "{one}", "no method"),
        (["method._target_=escdiff.methods.wings.XTI"], "{one}", "not there"),
        (["method.templates=[a photo]"], "{one}", "templates"),
        (["method.init=''"], "{one}", "no token"),
    ],
)
def test_refused_in_one_sentence(fit, references, tmp_path, arguments, source, words):
    (tmp_path / "no_pictures").mkdir()
    (tmp_path / "no_pictures" / "note.txt").write_text("not a picture", encoding="utf-8")
    (tmp_path / "many").mkdir()
    for i in range(6):
        shutil.copy(references / "a.png", tmp_path / "many" / f"{i}.png")
    places = {"no_pictures": tmp_path / "no_pictures", "many": tmp_path / "many", "one": references / "a.png"}
    source = source and source.format(**places)
    with pytest.raises(UserError) as caught:
        fit("xti", *arguments, source=source)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_too_few_references(fit, references, monkeypatch):
    from escdiff.methods.neti import NeTI

    monkeypatch.setattr(NeTI, "few", 3)
    with pytest.raises(UserError, match=r"2 reference pictures given .* takes 3 to 6: add some"):
        fit("neti")


def test_a_run_folder_belongs_to_its_references(fit, references):
    fit("ti", steps=1)
    with pytest.raises(UserError, match="other references"):
        fit("ti", steps=2, source=references / "a.png")
    names = []
    for source in ("x/mug.png", "y/mug.png"):
        names.append(train.compose_named(["method=ti", f"data.references={source}"]).run_dir)
    assert names[0] != names[1] and all("ti-mug-" in name for name in names)


def test_a_concept_for_another_backbone_is_refused(fit, tiny_folder, tmp_path):
    import tiny

    file = fit("xti", steps=1) / "export" / "concept.safetensors"
    wide = tiny.make_backbone(unet=tiny.make_unet(64), text_encoder=tiny.make_text_encoder(64))
    wide.pipeline().save_pretrained(tmp_path / "wide")
    with pytest.raises(UserError, match="was made for"):
        paint(tmp_path / "wide", tmp_path, f"concept={file}")
    concept = Concept.load(file)
    concept.space = type(concept.space)(tuple((f"down_blocks.9.{i}",) for i in range(16)))
    concept.save(tmp_path / "strange.safetensors")
    with pytest.raises(UserError, match="was made for"):
        paint(tiny_folder, tmp_path, f"concept={tmp_path / 'strange.safetensors'}")


def test_only_methods_can_be_named(tiny_backbone):
    with pytest.raises(UserError, match="is no method"):
        make_method({"_target_": "escdiff.methods.base.placeholder"}, tiny_backbone)


def test_references_are_read_at_the_size_that_is_asked_for(tiny_folder, references):
    """`data.size` was ignored: the U-Net's own size was taken."""
    config = compose("train", ["method=xti", f"backbone.name={tiny_folder}", f"data.references={references}"])
    for size in (32, 48):
        data = setup.build(replace(config, data=replace(config.data, size=size))).data
        assert data.pixels.shape[2:] == (size, size) and data.moments.shape[3] == size // 8
