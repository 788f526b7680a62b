"""`python train.py`: compose a configuration and train."""

import sys
from collections.abc import Sequence
from dataclasses import fields
from types import SimpleNamespace

from escdiff.cli.compose import (
    compose,
    configs_folder,
    door,
    options,
    reject_unknown,
    show,
    unknown_key,
)
from escdiff.errors import UserError

TEXTS = ("data.root", "data.shards", "run_dir", "run_id", "export", "init", "backbone.name")
SWEEP = {"-m", "--multirun"}
GROUPS = ("experiment", "backbone", "encoder", "space", "data", "loss", "trainer", "logger", "debug")
HELP = """Train the concept encoder, or a part of the bundled model.

  python train.py                                    the encoder for the bundled model, on Still Life
  python train.py experiment=mini/unet               a part of the bundled model: clip, vae, unet, oracle, encoder
  python train.py backbone=sd15 data.shards=DIR      the encoder for Stable Diffusion 1.5, on your shards
  python train.py trainer=ddp trainer.devices=8      on eight GPUs; torchrun and SLURM: configs/trainer/multinode.yaml
  python train.py optim.lr=1e-4 trainer.max_steps=50 any key below, with dots
  python train.py -m encoder.gates=learned,hand,none a sweep; finished cells are skipped

A run that was stopped goes on from its newest checkpoint when the same command is given again.

Groups: {groups}

Keys and their defaults:

{keys}"""


def help_text() -> str:
    groups = "\n".join(f"  {group:<11} {options(group)}" for group in GROUPS)
    shown = ("train.yaml", "data/still_life.yaml", "trainer/cpu.yaml", "encoder/default.yaml", "loss/default.yaml")
    return HELP.format(groups="\n" + groups, keys=show(*shown))


def run(values: dict) -> None:
    """Check a composed configuration and train.

    Raises:
        UserError: unknown keys, or whatever the training refuses.
    """
    from escdiff.data.images import expand
    from escdiff.data.store import is_address
    from escdiff.encoder.encoder import EncoderConfig
    from escdiff.quiet import quiet_libraries
    from escdiff.training.encoder_module import Objective
    from escdiff.training.run import train

    quiet_libraries()
    for part, kind in (("encoder", EncoderConfig), ("loss", Objective)):
        known = {field.name for field in fields(kind)}
        for key in values[part]:
            if key not in known:
                raise UserError(unknown_key(f"{part}.{key}", [f"{part}.{name}" for name in sorted(known)]))
    if shards := values["data"]["shards"]:
        if not is_address(shards) and not expand(shards).is_dir():
            raise UserError(f"data.shards={shards} is no folder; expected webdataset shards with their index in one")
        values["data"]["root"] = shards
    elif values["backbone"]["name"] != "mini" and values["data"]["root"] == values["data"]["still_life"]:
        what = f"backbone {values['backbone']['name']} with the pictures of the bundled model"
        raise UserError(f"{what} given; expected data.shards=DIR with your own (see `python -m data_prep --help`)")
    train(SimpleNamespace(**{key: _namespace(value) for key, value in values.items()}))


def _namespace(value):
    return SimpleNamespace(**value) if isinstance(value, dict) else value


def sweep(argv: Sequence[str]) -> None:
    """Hydra's multirun; each cell has its own run folder, named after what the sweep varies."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import DictConfig, OmegaConf

    given = OverridesParser.create().parse_overrides([a for a in argv if a not in SWEEP])
    varied = [override.get_key_element() for override in given if override.is_sweep_override()]

    @hydra.main(config_path=str(configs_folder().absolute()), config_name="train", version_base="1.3")
    def run_cell(config: DictConfig) -> None:
        values = OmegaConf.to_container(config, resolve=True)
        cell = [o for o in HydraConfig.get().overrides.task if o.split("=")[0] in varied]
        name = ",".join(cell).replace("/", "-") or "default"
        values["run_id"], values["run_dir"] = name, f"{values['sweep_dir']}/{name}"
        run(values)

    run_cell()


def _main(argv: list[str]) -> None:
    if SWEEP & set(argv):
        sweep(argv)
        return
    values = compose("train", argv, TEXTS)
    reject_unknown("train", values, argv, but=("encoder.", "loss."))  # their own classes judge those, see `run`
    run(values)


def main() -> None:
    import logging

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "lightning", "lightning.pytorch", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    door(_main, help_text)
