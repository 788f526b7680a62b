"""References that people give: read, checked, encoded once, and served as batches for the loop."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from escdiff.backbone import Backbone
from escdiff.data.images import expand, list_images, open_image, to_pixels
from escdiff.errors import UserError
from escdiff.methods import Method

MASK = ".mask.png"


@dataclass
class References:
    """Pictures of one concept.

    Attributes:
        names: file names. pixels: (N, 3, H, W) in [-1, 1], centre squares at the backbone's size.
        masks: (N, 1, H, W), 1 on the object, from `NAME.mask.png` beside each picture; None where one lacks it.
    """

    names: list[str]
    pixels: Tensor
    masks: Tensor | None = None

    @classmethod
    def read(cls, source: str | Path, size: int, few: int = 1, many: int = 5) -> "References":
        """Read a picture or all pictures of a folder.

        Raises:
            UserError: one that is no picture, or too few or too many of them for the method.
        """
        path = expand(source)
        files = [path] if path.is_file() else [f for f in list_images(path) if not f.name.endswith(MASK)]
        if not few <= len(files) <= many:
            expected = f"{few}" if few == many else f"{few} to {many}"
            what = f"{len(files)} reference picture{'s' * (len(files) != 1)} given in {path}"
            raise UserError(f"{what}; this method takes {expected}: {'add' if len(files) < few else 'remove'} some")
        pixels, masks = torch.stack([to_pixels(open_image(file), size) for file in files]), None
        beside = [file.with_name(file.stem + MASK) for file in files]
        if all(file.is_file() for file in beside):
            masks = torch.stack([(to_pixels(open_image(file), size)[:1] > 0).float() for file in beside])
        return cls([file.name for file in files], pixels, masks)

    def fingerprint(self) -> str:
        return sha256(self.pixels.numpy().tobytes()).hexdigest()[:16]


@dataclass
class Prior:
    """Pictures of the class that the backbone painted itself: prompts and moments (N, 2C, h, w)."""

    prompts: Sequence[str]
    moments: Tensor
    weight: float


class ReferenceData(L.LightningDataModule):
    """Endless batches of references; each is a function of (seed, number of the batch), so resuming is exact.

    All references of a batch share one prompt, so that it is encoded once. With a prior, as many pictures of the class
    come behind them, with prompts of their own.
    """

    def __init__(
        self, method: Method, references: References, batch_size: int, seed: int, flip: bool = True,
        prior: Prior | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.method, self.references, self.prior = method, references, prior
        self.batch_size, self.seed, self.step = batch_size, seed, 0
        pixels = torch.cat([references.pixels, references.pixels.flip(-1)]) if flip else references.pixels
        self.pixels, self.moments = pixels, encode(method.backbone, pixels)

    def batch(self, number: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, number))
        rows = torch.from_numpy(rng.integers(len(self.pixels), size=self.batch_size))
        batch = {"latent": self.moments[rows], "pixels": self.pixels[rows]}
        batch["prompt"] = [self.method.prompt(rng)] * self.batch_size
        if self.prior is not None:
            # One prompt for all of them, too.
            prompt = self.prior.prompts[rng.integers(len(self.prior.prompts))]
            same = np.flatnonzero([text == prompt for text in self.prior.prompts])
            rows = torch.from_numpy(rng.choice(same, size=self.batch_size))
            batch["latent"] = torch.cat([batch["latent"], self.prior.moments[rows]])
            batch["prompt"] += [prompt] * self.batch_size
            # Means over the two halves, not over all: instance + weight * prior (DreamBooth, eq. 2).
            batch["weight"] = torch.tensor([2.0, 2.0 * self.prior.weight]).repeat_interleave(self.batch_size)
        return batch

    def train_dataloader(self) -> DataLoader:
        return DataLoader(_Batches(self), batch_size=None)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.step += 1  # called right before the step; what was prefetched and not trained on does not count
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step, "references": self.references.fingerprint()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["references"] != self.references.fingerprint():
            raise UserError("run_dir holds a run with other references; give another run_id or delete its checkpoints")
        self.step = state_dict["step"]


class _Batches(IterableDataset):
    def __init__(self, data: ReferenceData) -> None:
        self.data = data

    def __iter__(self) -> Iterator[dict[str, Any]]:
        number = self.data.step
        while True:
            yield self.data.batch(number)
            number += 1


def encode(backbone: Backbone, pixels: Tensor) -> Tensor:
    """Moments (N, 2C, h, w) on the CPU, picture by picture: the memory of one."""
    return torch.cat([backbone.moments(part).float().cpu() for part in pixels.split(1)])
