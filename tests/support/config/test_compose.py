"""Every configuration composes, and every mistake in one gives one sentence."""

import re
import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

import escdiff
from escdiff.support.config import compose as compose_module
from escdiff.support.config.backbone import DTYPE_NAMES
from escdiff.support.config.compose import _hydra, _whole, compose, read
from escdiff.support.config.control import KINDS
from escdiff.support.config.folder import configs_folder, options
from escdiff.support.config.keys import keys_of
from escdiff.support.config.train import TrainConfig
from escdiff.support.errors import UserError

EXPERIMENTS = sorted(
    str(path.relative_to(configs_folder() / "experiment").with_suffix(""))
    for path in (configs_folder() / "experiment").rglob("*.yaml")
)
BACKBONES = sorted(path.stem for path in (configs_folder() / "backbone").glob("*.yaml"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_opens_with_its_command(name):
    compose("train", [f"experiment={name}"])
    text = (configs_folder() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8")
    assert all(word in text for word in ("# Command:", "# Hardware:", "# Time:", "# Expect:"))


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name.split("/")[0] in BACKBONES])
def test_an_experiment_of_a_backbone_takes_it_by_itself(name):
    backbone = name.split("/")[0]
    own, expected = compose("train", [f"experiment={name}"]), compose("train", [f"backbone={backbone}"])
    assert own.backbone.name == expected.backbone.name
    if name == f"{backbone}/encoder":  # which backbone={backbone} takes
        assert own == expected == compose("train", [f"backbone={backbone}", f"experiment={name}"])


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name.startswith("ablation/")])
def test_every_cell_of_an_ablation_changes_the_base_and_keys_that_exist(name):
    known = {key.name for key in keys_of(TrainConfig)} | {"encoder.vocabulary.shape"}
    own = yaml.safe_load((configs_folder() / "experiment" / f"{name}.yaml").read_text(encoding="utf-8"))
    cells, shared = own["hydra"]["sweeper"]["params"], own["defaults"][0].removeprefix("/experiment/")
    base = compose("train", [f"experiment={shared}"])
    assert compose("train", [f"experiment={name}"]) == base and cells.keys() <= known
    overrides = OverridesParser.create().parse_overrides([f"{key}={values}" for key, values in cells.items()])
    choices = [
        [f"{o.key_or_group}={v}" for v in (o.sweep_string_iterator() if o.is_sweep_override() else [o.value()])]
        for o in overrides
    ]
    made = [compose("train", [f"experiment={shared}", *cell]) for cell in product(*choices)]
    assert all(cell not in (base, *made[:i]) for i, cell in enumerate(made))


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("door", ["train", "infer"])
def test_every_backbone_composes_in_both_doors(door, name):
    config = compose(door, [f"backbone={name}"])
    assert config.backbone.name and config.backbone.dtype in DTYPE_NAMES


@pytest.mark.parametrize("overrides", [["trainer=ddp"], ["trainer=multinode"], ["logger=wandb"], ["debug=default"]])
def test_groups(overrides):
    compose("train", overrides)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["optim.lrr=1"], ("optim.lrr", "optim.lr")),
        (["+optim.foo=1"], ("optim.foo",)),
        (["backbone=sd16"], ("sd16", "sd15")),
        (["experiment=mini/foo"], ("mini/foo", "mini/unet")),
        (["optim.lr"], ("optim.lr", "key=value")),
        (["data.size=[1,"], ("data.size",)),
        (["=1"], ("=1", "key=value")),
        (["space=null"], ("space=null", "p_plus")),
        (["~backbone"], ("backbone", "sd15")),
        (["~seed"], ("seed",)),
        (["seed=null"], ("seed=None", "whole number")),
        (["seed=-1"], ("seed=-1", "0 or more")),
        (["optim=null"], ("optim=None", "optim.name")),
        (["optim.lr=abc"], ("optim.lr=abc", "a number")),
        (["optim.lr=nan"], ("optim.lr=nan", "0 or more")),
        (["trainer.threads=0"], ("trainer.threads=0", "1 or more")),
        (["trainer.max_steps=1.5"], ("trainer.max_steps=1.5", "whole number")),
        (["resume=3"], ("resume=3", "true or false")),
        (["encoder.shape_depths=3"], ("encoder.shape_depths=3", "a list")),
        (["encoder.gates=[1]"], ("encoder.gates", "learned, hand or none")),
        (["run_dir=null"], ("run_dir=None", "a text")),
        (["data.tokens=always"], ("data.tokens=always", "null or auto")),
        (["data.num_workers=many"], ("data.num_workers=many", "auto or a whole number, 0 or more")),
        (["data.num_workers=-1"], ("data.num_workers=-1", "auto or a whole number, 0 or more")),
        (["data.latents=no_such"], ("data.latents=no_such", "null or auto")),
        (["data.one_reference=1.5"], ("data.one_reference=1.5", "from 0 to 1")),
        (["encoder.tokens.shape=a"], ("encoder.tokens.shape=a", "a whole number")),
        (["encoder.tokens.colour=1"], ("encoder.tokens.colour",)),
        (["encoder.shape_depths=[a]"], ("encoder.shape_depths[0]=a", "a whole number")),
        (["method.init=mug"], ("method.init=mug", "without method=", "xti")),
        (["method=xti", "method.innit=mug"], ("method.innit",)),
    ],
)
def test_mistakes_give_one_sentence(overrides, words):
    with pytest.raises(UserError) as caught:
        compose("train", overrides)
    message = str(caught.value)
    assert all(word in message for word in words)
    assert "\n" not in message and len(message) < 300


@pytest.mark.parametrize(
    ("door", "overrides"),
    [
        ("train", []),
        ("train", ["seed=3", "method=xti", "optim.lr=2e-3", "method.init=[mug,chair]"]),
        ("train", ["optim.lr=1", "experiment=ablation/tokens", "optim.lr=2"]),
        (
            "train",
            ["encoder.tokens={shape: 1, appearance: 2}", "encoder.shape_depths=[0,1]", "encoder.vocabulary.shape=[]"],
        ),
        ("train", ["logger=wandb", "~debug", "data.shards='a b'"]),
        ("train", ["++loss.terms.mine=0.5", "hydra.verbose=true"]),
        ("infer", ["control=conform", "control.size=0.5", "seed=3"]),
    ],
)
def test_values_set_in_a_kept_composition_are_those_that_hydra_sets(door, overrides):
    for _ in range(2):  # the second time what the groups give is there already
        assert _hydra(door, overrides) == _whole(door, overrides)
        assert _hydra(door, []) == _whole(door, [])


@pytest.mark.parametrize("workers", ["auto", 0, 6])
def test_workers_are_counted_or_left_to_the_machine(workers):
    assert compose("train", [f"data.num_workers={workers}"]).data.num_workers == workers


def test_the_experiment_follows_the_backbone():
    assert compose("train", []).trainer == compose("train", ["experiment=mini/encoder"]).trainer
    for name in BACKBONES:
        config = compose("train", [f"backbone={name}"])
        assert config == compose("train", [f"backbone={name}", f"experiment={name}/encoder"])
        assert bool(config.encoder.vocabulary["shape"]) == (name == "mini")  # the nouns of its own world
    assert compose("train", ["backbone=sd15", "method=xti"]).recipe == "method"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["control=conform", "control.size=big"], ("control.size=big", "a number, 0 or more")),
        (["control=conform", "control.until=2"], ("control.until=2", "from 0 to 1")),
        (["control=conform", "control.weight=2"], ("control.weight",)),
        (["control.size=2"], ("control.size=2", "without control=", "conform")),
        (["edit=pix2pix_zero", "edit.update=none"], ("edit.update=none", "both or half")),
        (["control=boxes2"], ("control=boxes2", "boxes")),
        (["strength.color=1"], ("strength.color",)),
        (["backbone.dtype=float8"], ("backbone.dtype=float8", "bfloat16")),
    ],
)
def test_mistakes_in_front_of_infer_give_one_sentence(overrides, words):
    with pytest.raises(UserError) as caught:
        compose("infer", overrides)
    message = str(caught.value)
    assert all(word in message for word in words) and "\n" not in message


def test_a_preset_of_a_group_has_the_keys_of_its_dataclass():
    for group, kinds in KINDS.items():
        assert options(group).split(", ") == sorted(kinds)
        for name, kind in kinds.items():
            assert getattr(compose("infer", [f"{group}={name}"]), group) == kind()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nothing_reads: 1", ("configs/debug/mine.yaml", "trainer.nothing_reads")),
        ("max_steps: many", ("configs/debug/mine.yaml", "trainer.max_steps=many", "a whole number, 0 or more")),
        ("max_steps: -1", ("trainer.max_steps=-1", "0 or more")),
    ],
)
def test_mistakes_in_a_file_name_it(tmp_path, monkeypatch, text, words):
    shutil.copytree(configs_folder(), tmp_path / "configs")
    file = tmp_path / "configs" / "debug" / "mine.yaml"
    file.write_text(f"# @package _global_\ntrainer: {{{text}}}\n", encoding="utf-8")
    monkeypatch.setattr(compose_module, "configs_folder", lambda: tmp_path / "configs")
    with pytest.raises(UserError) as caught:
        compose("train", ["debug=mine"])
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_a_run_folder_of_before_the_dataclasses_is_read():
    """tests/support/config/run_of_november.yaml was written by `method=xti` on 2026-11-26."""
    old = yaml.safe_load(Path(__file__).with_name("run_of_november.yaml").read_text(encoding="utf-8"))
    config = read("train", old)
    then = [  # of the recipe of that day; a run keeps what it was made with
        "encoder.tokens={shape:2,appearance:6}",
        "encoder.branch_rank=0",
        "encoder.branches=lora",
    ]
    now = compose("train", ["method=xti", "data.references=pictures/mug.png", *then])
    assert (config.run_id, config.run_dir) == ("xti-mug-03d55f", "outputs/runs/xti-mug-03d55f")
    assert config == replace(now, run_id=config.run_id, run_dir=config.run_dir)
    with pytest.raises(UserError, match="unknown key 'optim.lrr'; did you mean optim.lr"):
        read("train", old | {"optim": {"lrr": 1}})


def test_nobody_reads_a_configuration_by_dotted_names():
    files = [f for f in Path(escdiff.__file__).parent.rglob("*.py") if f.parent.name != "config"]
    text = {file: file.read_text(encoding="utf-8") for file in files}
    assert len(text) > 100
    for pattern in (
        r"OmegaConf\.select",
        r"\boption\(config",
        r"SimpleNamespace",
        r"config\[[\"'](data|trainer|optim)",
    ):
        assert not [file for file, source in text.items() if re.search(pattern, source)]


@pytest.mark.parametrize("name", ["sd15/encoder_24gb", "sd15/encoder_8x80gb", "sdxl/encoder_80gb"])
def test_a_presets_rate_goes_with_the_root_of_its_batch(name):
    preset, recipe = compose("train", [f"experiment={name}"]), compose("train", ["experiment=sd15/encoder"])
    ranks = preset.trainer.devices if preset.trainer.strategy == "ddp" else 1
    times = ranks * preset.data.batch_size / recipe.data.batch_size
    assert preset.optim.lr == pytest.approx(recipe.optim.lr * times**0.5)
    assert preset.data.buckets and preset.optim.ema and preset.logger.name == "wandb"
    assert preset == compose("train", [f"backbone={name.split('/')[0]}", f"experiment={name}"])
