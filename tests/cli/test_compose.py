"""Every configuration composes, and every mistake in one gives one sentence."""

from itertools import product

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from escdiff.cli.compose import compose, configs_folder
from escdiff.cli.keys import check_keys, defaults_of
from escdiff.cli.train import TEXTS
from escdiff.errors import UserError

EXPERIMENTS = sorted(
    str(path.relative_to(configs_folder() / "experiment").with_suffix(""))
    for path in (configs_folder() / "experiment").rglob("*.yaml")
)
BACKBONES = sorted(path.stem for path in (configs_folder() / "backbone").glob("*.yaml"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_composes_and_opens_with_its_command(name):
    config = compose("train", [f"experiment={name}"], TEXTS)
    check_keys("train", config)
    text = (configs_folder() / "experiment" / f"{name}.yaml").read_text()
    assert all(word in text for word in ("# Command:", "# Hardware:", "# Time:", "# Expect:"))


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name.startswith("ablation/")])
def test_every_cell_of_an_ablation_changes_the_base_and_keys_that_exist(name):
    known = defaults_of("train")
    cells = yaml.safe_load((configs_folder() / "experiment" / f"{name}.yaml").read_text())["hydra"]["sweeper"]["params"]
    base = compose("train", ["experiment=mini/ablation"], TEXTS)
    assert compose("train", [f"experiment={name}"], TEXTS) == base and cells.keys() <= known.keys()
    overrides = OverridesParser.create().parse_overrides([f"{key}={values}" for key, values in cells.items()])
    choices = [
        [f"{o.key_or_group}={v}" for v in (o.sweep_string_iterator() if o.is_sweep_override() else [o.value()])]
        for o in overrides
    ]
    made = [compose("train", ["experiment=mini/ablation", *cell], TEXTS) for cell in product(*choices)]
    assert all(cell not in (base, *made[:i]) for i, cell in enumerate(made))


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("door", ["train", "infer"])
def test_every_backbone_composes_in_both_doors(door, name):
    config = compose(door, [f"backbone={name}"])
    assert config["backbone"]["name"] and config["backbone"]["dtype"] in ("float32", "bfloat16", "float16")


@pytest.mark.parametrize("overrides", [["trainer=ddp"], ["trainer=multinode"], ["logger=wandb"], ["debug=default"]])
def test_groups(overrides):
    check_keys("train", compose("train", overrides), overrides)


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
        (["optim=null"], ("optim=None", "optim.lr")),
        (["optim.lr=abc"], ("optim.lr=abc", "a number")),
        (["optim.lr=nan"], ("optim.lr=nan", "0 or more")),
        (["trainer.threads=0"], ("trainer.threads=0", "1 or more")),
        (["trainer.max_steps=1.5"], ("trainer.max_steps=1.5", "whole number")),
        (["resume=3"], ("resume=3", "true or false")),
        (["encoder.shape_depths=3"], ("encoder.shape_depths=3", "a list")),
        (["encoder.gates=[1]"], ("encoder.gates", "a text")),
        (["run_dir=null"], ("run_dir=None", "a text")),
        (["data.tokens=always"], ("data.tokens=always", "null or auto")),
        (["data.latents=no_such"], ("data.latents=no_such", "null or auto")),
    ],
)
def test_mistakes_give_one_sentence(overrides, words):
    with pytest.raises(UserError) as caught:
        check_keys("train", compose("train", overrides, TEXTS), overrides)
    message = str(caught.value)
    assert all(word in message for word in words)
    assert "\n" not in message and len(message) < 300


def test_the_experiment_follows_the_backbone():
    assert compose("train", [])["trainer"] == compose("train", ["experiment=mini/encoder"])["trainer"]
    for name in BACKBONES:
        config = compose("train", [f"backbone={name}"])
        assert config == compose("train", [f"backbone={name}", f"experiment={name}/encoder"])
        assert bool(config["encoder"]["vocabulary"]["shape"]) == (name == "mini")  # the nouns of its own world
    assert compose("train", ["backbone=sd15", "method=xti"])["recipe"] == "method"


def test_settings_and_their_classes_agree():
    from dataclasses import asdict

    from escdiff.encoder.encoder import EncoderConfig
    from escdiff.training.encoder_module import Objective

    config = compose("train", ["experiment=null"])
    plain = lambda values: {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}  # noqa: E731
    assert config["encoder"] == plain(asdict(EncoderConfig()))
    assert config["loss"] == asdict(Objective())
