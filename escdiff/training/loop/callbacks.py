"""Callbacks that write: checkpoints and sample grids."""

import logging
import time
from pathlib import Path

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from escdiff.training.loop.checkpoint_files import DISK_ERRORS, CheckpointFolder
from escdiff.training.loop.monitoring.speed import SAVING
from escdiff.training.loop.optim.ema import Average
from escdiff.training.loop.steps import StepCallback

RETRY_SECONDS, LAST_SECONDS = 60.0, 300.0  # the latter within what RankWatch waits for a save
log = logging.getLogger(__name__)


class Checkpoints(StepCallback):
    """Saves every so many minutes, at the last step and at a clean stop; how: `escdiff.training.loop.checkpoint_files`.

    What could not be saved is tried again after `RETRY_SECONDS`, at the end of a run for `LAST_SECONDS` long.
    Modules with a method `export(folder)` are also exported then, with averaged weights.

    Place it last among the callbacks: what it saves must be the state after all of them.
    """

    def __init__(
        self, files: CheckpointFolder, folder: Path, average: Average, minutes: float = 5.0, steps: int | None = None,
        export_to: Path | None = None,
    ) -> None:  # fmt: skip
        self.files, self.folder, self.average, self.minutes, self.steps = files, folder, average, minutes, steps
        self.export_to = export_to
        self._last = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._last = time.monotonic()
        if trainer.is_global_zero:
            for left in self.folder.glob(".step-*"):  # of a run that was killed while saving
                left.unlink()

    def on_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        final = trainer.should_stop or trainer.global_step >= trainer.max_steps > 0
        if final or self._due(trainer):
            self.save(trainer, pl_module)
            self._last = time.monotonic()
        if final:
            self._insist(trainer)

    def _due(self, trainer: L.Trainer) -> bool:
        if self.steps and trainer.global_step % self.steps == 0:
            return True
        wait = RETRY_SECONDS if self.files.error else 60 * self.minutes
        late = time.monotonic() - self._last > min(wait, 60 * self.minutes)
        return trainer.strategy.reduce_boolean_decision(late, all=False) if trainer.world_size > 1 else late

    def save(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the checkpoint of this step."""
        trainer.save_checkpoint(self.folder / f"step-{trainer.global_step:09d}.ckpt", weights_only=False)
        with trainer.profiler.profile(SAVING):
            self._export(pl_module)

    def _insist(self, trainer: L.Trainer) -> None:
        """The last state of a run is worth waiting for room on the disk."""
        end = time.monotonic() + LAST_SECONDS
        while True:
            self.files.wait()
            again = self.files.error is not None and time.monotonic() < end
            if not trainer.strategy.broadcast(again):
                return
            time.sleep(RETRY_SECONDS / 4)
            trainer.save_checkpoint(self.folder / f"step-{trainer.global_step:09d}.ckpt", weights_only=False)

    @rank_zero_only
    def _export(self, pl_module: L.LightningModule) -> None:
        if self.export_to is None or not hasattr(pl_module, "export"):
            return
        try:
            with self.average.applied(pl_module):
                pl_module.export(self.export_to)
        except DISK_ERRORS as error:
            log.warning("the export to %s failed: %s", self.export_to, error)


class SampleGrid(StepCallback):
    """Every `steps` steps, with averaged weights, saves the picture that `module.sample_grid()` paints.

    It goes to the disk, and to those loggers that take pictures. Modules without that method are left alone. A failure
    is reported and survived.
    """

    def __init__(self, folder: Path, average: Average, steps: int) -> None:
        self.folder, self.average, self.steps = folder, average, steps

    @rank_zero_only
    def on_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step = trainer.global_step
        if not self.steps or step % self.steps or not hasattr(pl_module, "sample_grid"):
            return
        try:
            with self.average.applied(pl_module):
                picture = pl_module.sample_grid()
            picture.save(self.folder / f"step-{step:09d}.png")
            for logger in trainer.loggers:
                if hasattr(logger, "log_picture"):
                    logger.log_picture("samples", picture, step - 1)  # steps count from 0
        except Exception as error:
            log.warning("no samples at step %d: %s: %s", step, type(error).__name__, error)
