"""`python train.py`: compose a configuration and train."""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from escdiff.cli.door import door
from escdiff.cli.sweep import SWEEP, check_extras, sweep
from escdiff.support.config.compose import compose
from escdiff.support.config.help import groups_text, keys_text
from escdiff.support.config.train import TrainConfig
from escdiff.support.errors import UserError
from escdiff.support.memory import return_large_blocks

HELP = """Train the concept encoder, a part of the bundled model, or make a concept by one of the field's methods.

  python train.py                                    the encoder for the bundled model, on Still Life
  python train.py experiment=mini/unet               a part of the bundled model: clip, vae, unet, oracle,
                                                     scene_oracle, encoder
  python train.py backbone=sd15 data.shards=DIR      the encoder for Stable Diffusion 1.5, on your shards; on the
                                                     GPUs that are there, else the CPU (trainer=auto, the default)
  python train.py trainer=ddp trainer.devices=8      on eight GPUs; torchrun and SLURM:
                                                     configs/trainer/multinode.yaml
  python train.py optim.lr=1e-4 trainer.max_steps=50 any key below, with dots
  python train.py method=xti data.references=DIR     a concept from 1 to 5 pictures, for `python infer.py concept=FILE`
  python train.py -m encoder.gates=learned,hand,none a sweep; finished cells are skipped, stopped ones go on
  python train.py -m experiment=ablation/gates       the cells of an ablation; likewise for its neighbours
  python train.py -m hparams_search=optuna           Optuna chooses; configs/hparams_search/optuna.yaml
  python train.py -m launcher=slurm ...              a sweep's cells as jobs of SLURM; or launcher=ray
  python -m escdiff.cli.runs outputs/sweeps/encoder  all runs of a folder as a table

A run that was stopped goes on from its newest checkpoint when the same command is given again.

Groups:

{groups}

Keys and their defaults:

{keys}"""


def help_text() -> str:
    """The text of `--help`."""
    return HELP.format(groups=groups_text("train"), keys=keys_text(TrainConfig))


def run(config: TrainConfig) -> None:
    """Check what is to be read, and train.

    Raises:
        UserError: whatever the training refuses.
    """
    import torch

    from escdiff.data.index import Index
    from escdiff.data.pictures import expand
    from escdiff.data.shard_store import is_address
    from escdiff.methods.build import find_method
    from escdiff.support.logging import quiet_libraries
    from escdiff.training.loop.run import train

    if config.optim.name != "muon" and config.recipe != "encoder":
        problem = f"optim.name={config.optim.name} given with recipe={config.recipe}"
        raise UserError(f"{problem}; it is the encoder's alone: leave it out")
    quiet_libraries()
    torch.set_float32_matmul_precision(config.matmul_precision)
    if config.backbone.name != "mini":
        return_large_blocks()
    data = config.data
    if config.method and not (data.references or find_method(config.method["_target_"]).encodes):
        raise UserError("no references given; expected data.references=DIR with pictures of one concept")
    if data.shards:
        if not is_address(data.shards):
            if not expand(data.shards).is_dir():
                raise UserError(
                    f"data.shards={data.shards} is no folder; expected webdataset shards with their index in one"
                )
            Index.load(expand(data.shards))  # nothing is rendered into a folder of the user's own
    elif data.references:
        pass  # pictures of the user's own; no data set is read
    elif config.backbone.name != "mini" and data.root == data.still_life:
        problem = f"backbone {config.backbone.name} with the pictures of the bundled model"
        raise UserError(f"{problem} given; expected data.shards=DIR with your own (see `python -m data_prep --help`)")
    train(config, _scores(config))


def _scores(config: TrainConfig) -> list:
    """Callbacks that score what is painted while training."""
    if not (config.scores.clip or config.scores.dino):
        return []
    from escdiff.evaluation.metrics.while_training import make_scores
    from escdiff.training.loop.hardware import own_device

    return make_scores(vars(config.scores), config.trainer.val_steps, own_device(config.trainer))


def compose_named(argv: Sequence[str]) -> TrainConfig:
    """The configuration of a command line; runs with other references get another folder, unless it names one."""
    config = compose("train", argv)
    keys = {argument.split("=")[0] for argument in argv}
    if config.data.references and not keys & {"run_id", "run_dir"}:
        config = compose("train", [*argv, f"run_id={config.run_id}-{short_name(config.data.references)}"])
    return config


def short_name(path: str) -> str:
    """A short name for a path that others of the same last part do not share."""
    full = Path(path).expanduser().absolute()
    return f"{full.stem}-{hashlib.sha256(str(full).encode()).hexdigest()[:6]}"


def _main(argv: list[str]) -> None:
    if SWEEP & set(argv):
        sweep(argv, run)
        return
    check_extras(argv)
    run(compose_named(argv))


def main() -> None:
    """The door `python train.py`."""
    import logging

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "lightning", "lightning.pytorch", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    door(_main, help_text)
