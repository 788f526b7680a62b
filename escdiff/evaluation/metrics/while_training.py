"""CLIP and DINO scores of a training's paintings of its fixed held-out samples, beside the validation loss."""

import time
from collections.abc import Mapping
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch import Tensor
from transformers import AutoConfig

from escdiff.concept import ATTRIBUTES
from escdiff.data.pictures import to_pil
from escdiff.evaluation.metrics.features import BUNDLED, ClassToken, Clip, Features, load_clip
from escdiff.support.errors import UserError, reason_of
from escdiff.training.loop.monitoring.watchdog import RankWatch
from escdiff.training.loop.optim.ema import Average
from escdiff.training.loop.steps import StepCallback

MOST = 0.03  # share of a run's time
READERS = {"clip": load_clip, "dino": ClassToken}


def make_scores(folders: Mapping[str, str | None], steps: int, device: str = "cpu") -> list["Scores"]:
    """The callback for networks of the user's own; none where no folder is given.

    Args:
        folders: "clip" and "dino" -> folder of a transformers model, or "mini" for the bundled CLIP; none is fetched.
        steps: of training between two validations.

    Raises:
        UserError: no such folder, or no such network in it.
    """
    networks = {name: _read(name, folder, device) for name, folder in folders.items() if folder}
    return [Scores(networks, steps)] if networks else []


def _read(name: str, folder: str, device: str) -> Features:
    if (name, folder) != ("clip", BUNDLED):
        folder = _checked(name, folder)
    network = READERS[name](folder, device=device)
    network.pictures([Image.new("RGB", (64, 64))])  # what cannot be read is found before the training
    return network


def _checked(name: str, folder: str) -> str:
    path, argument = Path(folder).expanduser(), f"scores.{name}={folder} given"
    if not path.is_dir():
        problem = f"{argument}, and there is no such folder"
        raise UserError(f"{problem}; name one with the model's weights, since a training downloads none")
    try:
        kind = AutoConfig.from_pretrained(path).model_type
    except (OSError, ValueError) as error:
        problem = f"{argument}, which cannot be read ({reason_of(error)})"
        raise UserError(f"{problem}; name a folder of transformers") from error
    if (kind == "clip") != (name == "clip"):
        expected = "a whole CLIP" if name == "clip" else "a DINO or DINOv2"
        raise UserError(f"{argument}, which holds a model of type {kind}; expected {expected}")
    return str(path)


class Scores(StepCallback):
    """Paints `module.preview` at validations, with averaged weights, and logs mean cosines.

    `val/clip_shape` is that of CLIP's vectors of paintings and of their shape references, `val/clip_appearance`
    and `val/dino_...` likewise; `val/clip_text` that of paintings and their prompts, with the anchor words in place of
    the placeholders. A painting costs as much as some steps, so a validation goes without scores where they would
    take more than `most` of the run's time, apart from the first and the last; `val/scores_share` says what they took.
    Modules without a preview are left alone, and the training's random numbers are not touched.
    """

    def __init__(self, networks: Mapping[str, Features], steps: int, most: float = MOST) -> None:
        self.networks, self.steps, self.most = networks, steps, most
        self.spent, self.once, self._start = 0.0, 0.0, 0.0
        self._references: dict[str, Tensor] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.spent, self.once, self._start = 0.0, 0.0, time.monotonic()

    @rank_zero_only
    def on_step(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step, last = trainer.global_step, trainer.global_step >= trainer.max_steps > 0
        due = self.steps and (last or (step % self.steps == 0 and self._affordable()))
        if not due or getattr(pl_module, "preview", None) is None:
            return
        began = time.monotonic()
        next(c for c in trainer.callbacks if isinstance(c, RankWatch)).mark("scoring")
        average = next(c for c in trainer.callbacks if isinstance(c, Average))
        devices = [pl_module.device] if pl_module.device.type == "cuda" else []
        with torch.random.fork_rng(devices), average.applied(pl_module):
            painted = pl_module.paint_preview()
        scores = self.measure(painted, pl_module)
        self.once = time.monotonic() - began
        self.spent += self.once
        scores["val/scores_share"] = self.spent / (time.monotonic() - self._start)
        for logger in trainer.loggers:
            logger.log_metrics(scores, step - 1)  # steps count from 0

    def _affordable(self) -> bool:
        return self.spent + self.once <= self.most * (time.monotonic() - self._start)

    def measure(self, painted: list[Image.Image], pl_module: L.LightningModule) -> dict[str, float]:
        """Name -> mean cosine of paintings with their references or texts."""
        scores = {}
        for name, network in self.networks.items():
            vectors = network.pictures(painted)
            against = {attribute: self._reference(name, attribute, pl_module) for attribute in ATTRIBUTES}
            if isinstance(network, Clip):
                against["text"] = network.texts(pl_module.preview_texts())
            for target, reference in against.items():
                scores[f"val/{name}_{target}"] = torch.cosine_similarity(vectors, reference, dim=-1).mean().item()
        return scores

    def _reference(self, name: str, attribute: str, pl_module: L.LightningModule) -> Tensor:
        key = f"{name} {attribute}"
        if key not in self._references:
            pictures = [to_pil(pixels) for pixels in pl_module.preview[f"{attribute}_ref"]]
            self._references[key] = self.networks[name].pictures(pictures)
        return self._references[key]
