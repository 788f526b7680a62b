"""Callbacks that hear of optimizer steps, where Lightning tells of batches."""

from typing import Any

import lightning as L


class StepCallback(L.Callback):
    """Calls `on_step` behind the last of the batches that an optimizer step was accumulated over."""

    _step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            self.on_step(trainer, pl_module)

    def on_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        raise NotImplementedError
