"""`python train.py`: compose a configuration and train."""

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

from escdiff.cli.compose import compose, door, show
from escdiff.cli.keys import check_keys, options
from escdiff.cli.sweep import SWEEP, check_extras, sweep
from escdiff.errors import UserError

TEXTS = ("data.root", "data.shards", "data.references", "run_dir", "run_id", "export", "init", "backbone.name",
         "backbone.config")  # fmt: skip
GROUPS = ("experiment", "backbone", "encoder", "space", "data", "loss", "trainer", "logger", "method",
          "hparams_search", "launcher", "debug")  # fmt: skip
HELP = """Train the concept encoder, a part of the bundled model, or make a concept by one of the field's methods.

  python train.py                                    the encoder for the bundled model, on Still Life
  python train.py experiment=mini/unet               a part of the bundled model: clip, vae, unet, oracle, encoder
  python train.py backbone=sd15 data.shards=DIR      the encoder for Stable Diffusion 1.5, on your shards
  python train.py trainer=ddp trainer.devices=8      on eight GPUs; torchrun and SLURM: configs/trainer/multinode.yaml
  python train.py optim.lr=1e-4 trainer.max_steps=50 any key below, with dots
  python train.py method=xti data.references=DIR     a concept from 1 to 5 pictures, for `python infer.py concept=FILE`
  python train.py -m encoder.gates=learned,hand,none a sweep; finished cells are skipped, stopped ones go on
  python train.py -m experiment=ablation/gates       the cells of an ablation; likewise for its neighbours
  python train.py -m hparams_search=optuna           Optuna chooses; configs/hparams_search/optuna.yaml
  python train.py -m launcher=slurm ...              a sweep's cells as jobs of SLURM; or launcher=ray
  python -m escdiff.cli.runs outputs/sweeps/encoder  all runs of a folder as a table

A run that was stopped goes on from its newest checkpoint when the same command is given again.

Groups: {groups}

Keys and their defaults:

{keys}"""


def help_text() -> str:
    groups = "\n".join(f"  {group:<11} {options(group)}" for group in GROUPS)
    shown = (
        "train.yaml",
        "loading.yaml",
        "data/still_life.yaml",
        "trainer/cpu.yaml",
        "encoder/default.yaml",
        "loss/default.yaml",
    )
    return HELP.format(groups="\n" + groups, keys=show(*shown))


def run(values: dict, overrides: Sequence[str] = ()) -> None:
    """Check a composed configuration and train.

    Args:
        overrides: those that chose its groups.

    Raises:
        UserError: unknown keys, values that they cannot have, or whatever the training refuses.
    """
    from escdiff.data.images import expand
    from escdiff.data.index import Index
    from escdiff.data.store import is_address
    from escdiff.methods.make import find_method
    from escdiff.quiet import quiet_libraries
    from escdiff.training.run import train

    check_keys("train", values, overrides)
    quiet_libraries()
    if values.get("method") and not (values["data"]["references"] or find_method(values["method"]["_target_"]).encodes):
        raise UserError("no references given; expected data.references=DIR with pictures of one concept")
    if shards := values["data"]["shards"]:
        if not is_address(shards):
            if not expand(shards).is_dir():
                raise UserError(
                    f"data.shards={shards} is no folder; expected webdataset shards with their index in one"
                )
            Index.load(expand(shards))  # nothing is rendered into a folder of the user's own
        values["data"]["root"] = shards
    elif values["data"]["references"]:
        pass  # pictures of the user's own; no data set is read
    elif values["backbone"]["name"] != "mini" and values["data"]["root"] == values["data"]["still_life"]:
        what = f"backbone {values['backbone']['name']} with the pictures of the bundled model"
        raise UserError(f"{what} given; expected data.shards=DIR with your own (see `python -m data_prep --help`)")
    train(SimpleNamespace(**{key: _namespace(value) for key, value in values.items()}))


def _namespace(value):
    return SimpleNamespace(**value) if isinstance(value, dict) else value


def name_run(values: dict, argv: Sequence[str]) -> None:
    """Runs with other references get another folder, unless the command names one."""
    given = {argument.split("=")[0] for argument in argv}
    if values["data"]["references"] and not given & {"run_id", "run_dir"}:
        values["run_id"] += "-" + short_name(values["data"]["references"])
        values["run_dir"] = str(Path(values["run_dir"]).with_name(values["run_id"]))


def short_name(path: str) -> str:
    """A short name for a path that others of the same last part do not share."""
    full = Path(path).expanduser().absolute()
    return f"{full.stem}-{hashlib.sha256(str(full).encode()).hexdigest()[:6]}"


def _main(argv: list[str]) -> None:
    if SWEEP & set(argv):
        sweep(argv, run, TEXTS)
        return
    check_extras(argv)
    values = compose("train", argv, TEXTS)
    name_run(values, argv)
    run(values, argv)


def main() -> None:
    import logging

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "lightning", "lightning.pytorch", "fsspec"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    door(_main, help_text)
