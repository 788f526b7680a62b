"""Exponential moving average of the trained parameters, and of nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from diffusers.training_utils import EMAModel

from escdiff.training.loop.steps import StepCallback


class Average(StepCallback):
    """Averages what has gradients, after every optimizer step; kept in the checkpoint.

    The decay warms up as (1 + step) / (10 + step), so early steps do not linger. A decay of 0 turns it off.
    Lightning's own weight averaging copies whatever is registered, frozen towers included; hence this one.
    """

    def __init__(self, decay: float = 0.999) -> None:
        self.decay = decay
        self.model: EMAModel | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.decay and self.model is None:
            foreach = torch.cuda.is_available()
            self.model = EMAModel(trainable(pl_module), decay=self.decay, foreach=foreach)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.model is not None:
            self.model.to(pl_module.device)

    def on_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.model is not None:
            self.model.step(trainable(pl_module))

    @contextmanager
    def applied(self, pl_module: L.LightningModule) -> Iterator[None]:
        """Within the block the module's parameters are the averaged ones."""
        if self.model is None:
            yield
            return
        parameters = trainable(pl_module)
        self.model.store(parameters)
        self.model.copy_to(parameters)
        try:
            yield
        finally:
            self.model.restore(parameters)

    def state_dict(self) -> dict[str, Any]:
        return {} if self.model is None else self.model.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.model is not None and state_dict:
            self.model.load_state_dict({**state_dict, "decay": self.decay})


def trainable(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The parameters that a training changes."""
    return [p for p in module.parameters() if p.requires_grad]
