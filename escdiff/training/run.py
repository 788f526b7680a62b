"""One command for every training: build, resume, fit, export.

A recipe is a function `build(config) -> (module, data, finish)`: a LightningModule, a LightningDataModule or
a DataLoader over an `EpochSampler`, and `finish(module)`, called once with averaged weights after all steps.
A module may also offer `export(folder)`, called at every checkpoint, and `sample_grid() -> PIL image`.
"""

import logging
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from escdiff.errors import UserError
from escdiff.training.averaging import Average
from escdiff.training.callbacks import Checkpoints, SampleGrid
from escdiff.training.checkpoint_io import DISK_ERRORS, CheckpointFolder
from escdiff.training.feeding import EndlessData, ensure_data
from escdiff.training.guards import CleanStop, GradientGuard, StepSeeds
from escdiff.training.loggers import make_loggers
from escdiff.training.monitor import Monitor, ProgressLine
from escdiff.training.options import option
from escdiff.training.ranks import BatchEnd, RankWatch
from escdiff.training.rundir import RunFolder, environment
from escdiff.training.speed import Speed

RECIPES = {
    "clip": "escdiff.training.clip_module:build",
    "vae": "escdiff.training.vae_module:build",
    "unet": "escdiff.training.unet_module:build",
    "oracle": "escdiff.training.oracle_module:build",
    "encoder": "escdiff.training.encoder_module:build",
    "method": "escdiff.training.method_setup:build",
}
log = logging.getLogger(__name__)


def train(config: Any, callbacks: Sequence[L.Callback] = ()) -> None:
    """Run `config.recipe` to `trainer.max_steps`, from the newest good checkpoint of `run_dir` where one is.

    Read by attribute: recipe, seed, run_dir, resume; data (see `ensure_data`, and batch_size); optim.ema,
    optim.clip; trainer.max_steps, accelerator, devices, num_nodes, strategy, precision, deterministic, accumulate,
    threads, log_steps, save_minutes, save_steps, keep, sample_steps, max_minutes, max_skips, stall_seconds;
    logger.name.
    On one CPU process a run that was stopped and resumed gives bit for bit what it would have given in one go; on a
    GPU so far as its kernels do, with trainer.deterministic those that do.

    Raises:
        UserError: an unknown recipe, data or checkpoints that do not fit, no such device, too little disk space, or
            another run in the same folder.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # else it advertises
    folder = RunFolder(config.run_dir)
    folder.create()
    with folder.held():
        _train(config, callbacks, folder)


def _train(config: Any, callbacks: Sequence[L.Callback], folder: RunFolder) -> None:
    resume = option(config, "resume", True)
    if not resume:
        folder.check_fresh()
    if config.recipe != "encoder" and (tokens := option(config, "data.tokens")):
        what = f"data.tokens={tokens} given with recipe={config.recipe}, which runs the vision tower or has none"
        raise UserError(f"{what}; leave it out")
    if threads := option(config, "trainer.threads"):
        torch.set_num_threads(threads)
    if not option(config, "data.references"):
        ensure_data(config)
    L.seed_everything(config.seed, workers=True, verbose=False)
    module, data, finish = find_recipe(config.recipe)(config)
    if not isinstance(data, L.LightningDataModule):
        data = EndlessData(data)
    folder.check_space(module, option(config, "trainer.keep", 2))
    average = Average(option(config, "optim.ema", 0.999))
    trainer = make_trainer(config, folder, average, callbacks)
    checkpoint = folder.newest_checkpoint() if resume else None
    if trainer.is_global_zero:
        folder.write_config(config)
        started = {"recipe": config.recipe, "status": "running", "resumed": str(checkpoint or "")}
        folder.write_manifest(**started, **environment())
    if checkpoint is not None:
        log.info("going on from %s", checkpoint)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    done = trainer.global_step >= trainer.max_steps
    if trainer.is_global_zero:
        if done:
            try:
                with average.applied(module):
                    finish(module)
            except DISK_ERRORS as error:
                what = f"the result could not be written ({error})"
                raise UserError(
                    f"{what}; mend that and give the same command again: it goes on from the last checkpoint"
                ) from error
        ended = next(callback.ended for callback in trainer.callbacks if isinstance(callback, CleanStop))
        folder.write_manifest(status="finished" if done else ended, step=trainer.global_step)
    if not done:
        log.warning("stopped at step %d; the same command goes on from there", trainer.global_step)


def find_recipe(name: str):
    """The `build` function of a recipe.

    Raises:
        UserError: there is none of that name.
    """
    if name not in RECIPES:
        raise UserError(f"recipe {name!r} given; expected one of {', '.join(RECIPES)}")
    module, function = RECIPES[name].split(":")
    return getattr(import_module(module), function)


def make_trainer(config: Any, folder: RunFolder, average: Average, extra: Sequence[L.Callback] = ()) -> L.Trainer:
    """Lightning's trainer with our callbacks; their order matters, checkpoints come behind what has a state."""
    get = lambda name, default: option(config, f"trainer.{name}", default)  # noqa: E731
    watch = RankWatch(get("stall_seconds", 60.0))
    files = CheckpointFolder(get("keep", 2))
    speed = Speed(option(config, "data.batch_size", 1))
    monitor = Monitor(speed)
    callbacks = [
        watch,
        StepSeeds(config.seed),
        GradientGuard(monitor, folder.path / "skipped.jsonl", option(config, "optim.clip", 1.0), get("max_skips", 10)),
        average,
        speed,
        monitor,
        ProgressLine(monitor),
        *extra,
        CleanStop(get("max_minutes", None)),
        SampleGrid(folder.samples, average, get("sample_steps", 0)),
        Checkpoints(
            files, folder.checkpoints, average, get("save_minutes", 5.0), get("save_steps", None),
            folder.path / "export",
        ),
        BatchEnd(watch),
    ]  # fmt: skip
    loggers = make_loggers(config, folder.path)
    callbacks.insert(0, Rewind(loggers[0]))
    where = {
        "accelerator": get("accelerator", "auto"), "devices": get("devices", "auto"),
        "num_nodes": get("num_nodes", 1), "strategy": get("strategy", "auto"),
        "precision": get("precision", "32-true"),
    }  # fmt: skip
    try:
        return L.Trainer(
            **where, max_steps=get("max_steps", 1000), max_epochs=-1, accumulate_grad_batches=get("accumulate", 1),
            log_every_n_steps=get("log_steps", 50), callbacks=callbacks, logger=loggers, plugins=[files],
            profiler=speed.clock, default_root_dir=folder.path, use_distributed_sampler=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            num_sanity_val_steps=0, limit_val_batches=0,
            deterministic=get("deterministic", None) or None,  # False would undo what the caller has set in torch
        )  # fmt: skip
    except (MisconfigurationException, ValueError) as error:  # there is no such device here, or no such strategy
        given = ", ".join(f"trainer.{name}={value}" for name, value in where.items())
        raise UserError(f"{given} given, of which Lightning says: {' '.join(str(error).split())}") from error


class Rewind(L.Callback):
    """Drops metrics of steps that were trained after the checkpoint and lost."""

    def __init__(self, logger) -> None:
        self.logger = logger

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.logger.rewind(trainer.global_step)
