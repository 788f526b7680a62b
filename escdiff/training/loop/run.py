"""One command for every training: build, resume, fit, export; what is trained is a recipe's to say."""

import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from escdiff.support.config.train import TrainConfig
from escdiff.support.errors import UserError, reason_of
from escdiff.training.launch import launcher
from escdiff.training.loop.callbacks import Checkpoints, SampleGrid
from escdiff.training.loop.checkpoint_files import DISK_ERRORS, CheckpointFolder
from escdiff.training.loop.guards import CleanStop, GradientGuard, StepSeeds
from escdiff.training.loop.hardware import Hardware, announce, choose, matmul_precision
from escdiff.training.loop.monitoring.loggers import make_loggers
from escdiff.training.loop.monitoring.monitor import Monitor, ProgressLine
from escdiff.training.loop.monitoring.speed import Speed
from escdiff.training.loop.monitoring.summary import Summary
from escdiff.training.loop.monitoring.validation import Validation
from escdiff.training.loop.monitoring.watchdog import BatchEnd, RankWatch
from escdiff.training.loop.optim.ema import Average
from escdiff.training.loop.prepare_data import EndlessData
from escdiff.training.loop.recipe import Training, find_recipe
from escdiff.training.loop.run_folder import RunFolder, environment

log = logging.getLogger(__name__)


def train(config: TrainConfig, callbacks: Sequence[L.Callback] = ()) -> None:
    """Run `config.recipe` to `trainer.max_steps`, from the newest good checkpoint of `run_dir` where one is.

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


def _train(config: TrainConfig, callbacks: Sequence[L.Callback], folder: RunFolder) -> None:
    if not config.resume:
        folder.check_fresh()
    elif folder.saved():
        folder.check_same(config)
    if config.recipe != "encoder" and config.data.tokens:
        what = f"data.tokens={config.data.tokens} given with recipe={config.recipe}"
        raise UserError(f"{what}, which runs the vision tower or has none; leave it out")
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    L.seed_everything(config.seed, workers=True, verbose=False)
    hardware = choose(config.trainer, bool(config.data.references))
    if rank_zero_only.rank == 0:
        announce(hardware, config.backbone.dtype)
    module, data, finish, max_steps = Training(*find_recipe(config.recipe)(config))
    if not isinstance(data, L.LightningDataModule):
        data = EndlessData(data)
    folder.check_space(module, config.trainer.keep)
    average = Average(config.optim.ema)
    trainer = make_trainer(
        config, hardware, folder, average, config.trainer.max_steps if max_steps is None else max_steps, callbacks
    )
    checkpoint = folder.newest_checkpoint() if config.resume else None
    if trainer.is_global_zero:
        folder.write_config(config)
        started = {"recipe": config.recipe, "status": "running", "resumed": str(checkpoint or "")}
        folder.write_manifest(**started, **environment())
    if checkpoint is not None:
        log.info("going on from %s", checkpoint)
    with matmul_precision(hardware, config.matmul_precision):
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


def make_trainer(
    config: TrainConfig, hardware: Hardware, folder: RunFolder, average: Average, max_steps: int,
    extra: Sequence[L.Callback] = (),
) -> L.Trainer:  # fmt: skip
    """Lightning's trainer with our callbacks; their order matters, checkpoints come behind what has a state."""
    settings, samples = config.trainer, config.data.batch_size
    watch = RankWatch(settings.stall_seconds)
    files = CheckpointFolder(settings.keep)
    speed = Speed(samples)
    monitor = Monitor(speed)
    callbacks = [
        watch,
        StepSeeds(config.seed),
        GradientGuard(monitor, folder.path / "skipped.jsonl", config.optim.clip, settings.max_skips),
        average,
        speed,
        monitor,
        ProgressLine(monitor),
        Summary(samples, settings.price_per_hour),
        *extra,
        CleanStop(settings.max_minutes),
        Validation(average, watch, settings.val_steps, settings.val_batches),
        SampleGrid(folder.samples, average, settings.sample_steps),
        Checkpoints(
            files, folder.checkpoints, average, settings.save_minutes, settings.save_steps, folder.path / "export"
        ),
        BatchEnd(watch),
    ]
    loggers = make_loggers(config.logger, folder.path, config.run_id, asdict(config))
    callbacks.insert(0, Rewind(loggers[0]))
    where = {**hardware._asdict(), "num_nodes": settings.num_nodes, "strategy": settings.strategy}
    try:
        return L.Trainer(
            **where, max_steps=max_steps, max_epochs=-1, accumulate_grad_batches=settings.accumulate,
            log_every_n_steps=settings.log_steps, callbacks=callbacks, logger=loggers,
            plugins=[files, *launcher(where["devices"], where["num_nodes"])],
            profiler=speed.clock, default_root_dir=folder.path, use_distributed_sampler=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            num_sanity_val_steps=0, limit_val_batches=0,  # see Validation
            deterministic=settings.deterministic or None,  # False would undo what the caller has set in torch
        )  # fmt: skip
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        # There is no such device here, no such strategy, or the cluster's variables say otherwise.
        given = ", ".join(f"trainer.{name}={value}" for name, value in where.items())
        raise UserError(f"{given} given, of which Lightning says: {reason_of(error)}") from error


class Rewind(L.Callback):
    """Drops metrics of steps that were trained after the checkpoint and lost."""

    def __init__(self, logger) -> None:
        self.logger = logger

    def on_train_start(self, trainer: L.Trainer, *_: Any) -> None:
        self.logger.rewind(trainer.global_step)
