"""docs/extending.md, done as it says: its files in a folder, installed, and each part used from its command."""

import re
import shutil
import sys
import tomllib
from dataclasses import replace
from importlib import invalidate_caches
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from escdiff.cli import train
from escdiff.concept import Concept
from escdiff.conditioning import ConditioningSpace
from escdiff.data.index import Index
from escdiff.evaluation.metrics.build import kinds, make_metrics, read_metrics
from escdiff.methods.build import find_method
from escdiff.support import extensions
from escdiff.support.config.compose import compose
from escdiff.support.config.data import DataConfig
from escdiff.support.errors import UserError
from escdiff.training.encoder.datasets import find
from escdiff.training.encoder.terms import TERMS, added_terms

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
FILES = {
    "pyproject.toml",
    "metrics.yaml",
    *(f"my_escdiff/{name}.py" for name in ("halves", "brightness", "smooth", "logos")),
}


def files_of(page: str) -> dict[str, str]:
    """Path -> text of a page's code blocks that begin with a comment that is a path."""
    blocks = re.findall(r"```(?:python|toml|yaml)\n# (\S+)\n(.*?)```", page, re.DOTALL)
    return dict(blocks)


def install(folder: Path, name: str, groups: dict[str, dict[str, str]]) -> None:
    """What pip leaves of a package: its metadata, with the entry points."""
    info = folder / f"{name.replace('-', '_')}-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n", encoding="utf-8")
    lines = [f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in points.items())
             for group, points in groups.items()]  # fmt: skip
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    invalidate_caches()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The folder of the page's package."""
    folder = tmp_path / "package"
    for path, text in files_of(PAGE.read_text(encoding="utf-8")).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    about = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    install(folder, about["name"], about["entry-points"])
    monkeypatch.syspath_prepend(folder)
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "my_escdiff"]:
        del sys.modules[name]


@pytest.fixture
def references(tmp_path):
    (tmp_path / "mug").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(tmp_path / "mug" / name)
    return tmp_path / "mug"


def test_the_page_has_a_file_for_each_part_and_a_line_for_each_file():
    files = files_of(PAGE.read_text(encoding="utf-8"))
    assert set(files) == {
        "pyproject.toml",
        "metrics.yaml",
        *(f"my_escdiff/{name}.py" for name in ("halves", "brightness", "smooth", "logos")),
    }
    points = tomllib.loads(files["pyproject.toml"])["project"]["entry-points"]
    groups = {extensions.METHODS, extensions.METRICS, extensions.LOSSES, extensions.DATASETS}
    assert set(points) == groups and all(len(part) == 1 for part in points.values())
    for part in points.values():
        ((_, target),) = part.items()
        assert target.partition(":")[0].replace(".", "/") + ".py" in files


def test_the_method(package, references, tiny_folder, tmp_path):
    """As the page's command, two steps of it; then again, from its name alone in a run's configuration."""
    config = compose("train", ["method=halves", "method.init=mug", "data.references=x"])
    assert config.method == {"_target_": "halves", "init": "mug"} and (config.recipe, config.run_id) == (
        "method",
        "halves",
    )
    assert (config.optim.lr, config.data.batch_size, config.trainer.max_steps) == (1e-2, 8, 500)
    with pytest.raises(UserError, match="method.wings"):
        compose("train", ["method=halves", "method.wings=2", "data.references=x"])
    few = ["data.batch_size=2", "trainer.max_steps=2", "trainer.threads=1"]
    places = [f"data.references={references}", f"backbone.name={tiny_folder}", f"run_dir={tmp_path / 'run'}"]
    train._main(["method=halves", "method.init=mug", *places, *few])
    concept = Concept.load(tmp_path / "run" / "export" / "concept.safetensors")
    assert concept.vectors["concept"].shape == (1, 2, 1, 32) and concept.notes["method"] == "Halves"
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    assert written["method"] == {"_target_": "halves", "init": "mug"}


def test_the_metric(package):
    assert "brightness" in kinds()
    lines = read_metrics(str(package / "metrics.yaml"))
    metric = make_metrics({"brightness": lines["brightness"]})["brightness"]
    grey = [Image.new("RGB", (4, 4), (level,) * 3) for level in (51, 102, 153)]
    assert metric.score(grey[:1], grey[1:]).tolist() == pytest.approx([0.3])  # 0.2 against the mean of 0.4 and 0.6
    assert (metric.against, metric.unit) == ("real", "distance")
    with pytest.raises(UserError, match="does not take model"):
        make_metrics({"x": {"kind": "brightness", "model": "mini"}})


def test_the_loss_term(package, tiny_backbone, monkeypatch):
    """Its weight times its value is added to the loss, and nothing else changes."""
    monkeypatch.syspath_prepend(Path(__file__).parent / "training")
    import objectives
    from objectives import make_batch, make_module

    every_layer = SimpleNamespace(build=lambda unet, stages: ConditioningSpace.p_plus(unet))
    monkeypatch.setattr(objectives, "ConditioningSpace", every_layer)
    weight = compose("train", ["loss.smooth=0.25"]).loss.terms
    assert weight == {"smooth": 0.25}
    losses = {}
    for name, terms in (("without", {}), ("with", weight)):
        module = make_module(tiny_backbone, monkeypatch, terms=terms)
        module.on_fit_start()
        torch.manual_seed(5)
        losses[name] = module.training_step(make_batch(), 0)
        module.on_fit_end()
    encoder, logs = module.encoder, losses["with"]["logs"]
    residuals = {a: encoder.residuals(a, f) for a, f in module.features(make_batch(), pairs=False).items()}
    scale = encoder.embedding_scale
    value = sum((r[:, 1:] - r[:, :-1]).square().sum() / r.numel() / scale**2 for r in residuals.values())
    assert value > 0
    torch.testing.assert_close(logs["smooth"], 0.25 * value.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses["with"]["loss"], losses["without"]["loss"] + logs["smooth"], rtol=1e-5, atol=1e-6)
    assert set(logs) - {"smooth"} == set(losses["without"]["logs"])


@pytest.mark.parametrize("weight", ["-1", "nan", ".inf", "much"])
def test_weights_that_are_none(package, weight):
    with pytest.raises(UserError, match=r"loss\.(terms\.)?smooth"):
        added_terms(compose("train", [f"loss.smooth={weight}"]).loss)


def test_the_reader(package, tmp_path):
    reader = find("logos")
    assert reader.__name__ == "Logos" and find("photos").__name__ == find("strangers").__name__ == "PhotoData"
    made = reader.on_before_batch_transfer(None, {"prompt": ["a mug", "a fox"], "pixels": 1}, 0)
    assert made == {"prompt": ["a mug, on white", "a fox, on white"], "pixels": 1}
    Index("logos", shards=[], planned=0).save(tmp_path)
    from escdiff.training.encoder.datasets import _kind

    assert _kind(DataConfig(root=str(tmp_path))) is reader


def test_without_the_package_its_names_are_refused():
    with pytest.raises(UserError, match="method=quarters given; expected one of .*; --help lists all"):
        compose("train", ["method=quarters", "data.references=x"])
    with pytest.raises(UserError, match="method._target_='my_escdiff.halves.Halves' given; expected a class below"):
        find_method("my_escdiff.halves.Halves")
    with pytest.raises(UserError, match="unknown key 'loss.smooth'"):
        compose("train", ["loss.smooth=0.1"])
    with pytest.raises(UserError, match=r"loss\.terms\.smooth given; expected a term that a package gives \(none"):
        added_terms(replace(compose("train", []).loss, terms={"smooth": 0.1}))


def test_two_packages_of_one_name_and_a_broken_one(package, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    install(other, "rival", {extensions.METHODS: {"halves": "rival:Halves"}, extensions.LOSSES: {"torn": "rival:torn"}})
    monkeypatch.syspath_prepend(other)
    with pytest.raises(UserError, match="'halves' of escdiff.methods is given by the packages my-escdiff and rival"):
        extensions.load(extensions.METHODS, "halves")
    with pytest.raises(UserError, match="'torn' of escdiff.losses is rival:torn of .* rival, which cannot be imported"):
        extensions.load(extensions.LOSSES, "torn")
    shutil.rmtree(other)


def test_our_own_parts_stay_ours(package, tmp_path, monkeypatch):
    other = tmp_path / "other"
    other.mkdir()
    points = {extensions.METRICS: {"mask_iou": "rival:x"}, extensions.DATASETS: {"photos": "rival:x"},
              extensions.LOSSES: {"mask": "rival:x"}}  # fmt: skip
    install(other, "rival", points)
    monkeypatch.syspath_prepend(other)
    assert type(make_metrics({"m": {"kind": "mask_iou"}})["m"]).__name__ == "MaskIoU"
    assert find("photos").__name__ == "PhotoData"
    assert compose("train", ["loss.mask=0.125"]).loss.mask == 0.125 and "mask" in TERMS
