"""References that people give: read, checked, encoded once, and served as batches for the loop."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import takewhile
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from escdiff.backbone import Backbone
from escdiff.concept import placeholder
from escdiff.data.pictures import expand, list_images, open_image, to_pixels
from escdiff.methods import Method
from escdiff.support.errors import UserError

# What may lie beside a picture NAME.png; `Method.needs` says which of it a method cannot do without.
BESIDE = {
    "masks": "NAME.mask.png, or NAME.mask0.png, NAME.mask1.png and so on, white on an object each",
    "texts": "NAME.txt, its prompt",
    "others": "NAME.other.png, the same scene without what is to be learned",
}
MOST = 100  # masks of a picture
_ASIDE = re.compile(r"\.(mask\d*|other)\.png$")


@dataclass
class References:
    """Pictures of one concept.

    Attributes:
        names: file names. pixels: (N, 3, H, W) in [-1, 1], centre squares at the backbone's size.
        masks: (N, 1, H, W), 1 on the object, or, for a method that needs masks, (N, M, H, W), 1 on each of M objects;
            None where a picture has none beside it.
        digest: of the pictures' files, and of those beside them that the method needs.
        texts: N prompts. others: (N, 3, H, W), a counterpart of each. Neither without a method that needs them.
    """

    names: list[str]
    pixels: Tensor
    masks: Tensor | None = None
    digest: str = ""
    texts: Sequence[str] = ()
    others: Tensor | None = None

    @classmethod
    def read(
        cls, source: str | Path, size: int, few: int = 1, many: int = 5, needs: Sequence[str] = ()
    ) -> "References":  # fmt: skip
        """Read a picture or all pictures of a folder, and what lies beside them.

        Args:
            needs: of `BESIDE`.

        Raises:
            UserError: one that is no picture, too few or too many of them for the method, one that lacks what is
                needed beside it, a text that is not UTF-8, or masks of other objects than the others have.
        """
        path = expand(source)
        files = [path] if path.is_file() else [f for f in list_images(path) if not _ASIDE.search(f.name)]
        if not few <= len(files) <= many:
            expected = f"{few}" if few == many else f"{few} to {many}"
            what = f"{len(files)} reference picture{'s' * (len(files) != 1)} given in {path}"
            raise UserError(f"{what}; this method takes {expected}: {'add' if len(files) < few else 'remove'} some")
        beside = {name: [_beside(file, name) for file in files] for name in BESIDE}
        for name in needs:
            for file, own in zip(files, beside[name], strict=True):
                if not own:
                    raise UserError(f"{file.name} has no {name} beside it; this method expects {BESIDE[name]}")
        needed = [file for name in needs for own in beside[name] for file in own]
        digest = sha256(b"".join(sha256(file.read_bytes()).digest() for file in [*files, *needed])).hexdigest()[:16]
        read = {name: [own[0] for own in beside[name]] for name in needs if name != "masks"}
        texts = [_text(file) for file in read.get("texts", ())]
        others = _pixels(read["others"], size) if "others" in read else None
        masks = _masks(beside["masks"], size, each="masks" in needs)
        return cls([file.name for file in files], _pixels(files, size), masks, digest, texts, others)


def _beside(file: Path, name: str) -> list[Path]:
    """What is there of it."""
    one = {"masks": ".mask.png", "texts": ".txt", "others": ".other.png"}[name]
    found = [file.with_name(file.stem + one)]
    if name == "masks" and not found[0].is_file():
        found = [file.with_name(f"{file.stem}.mask{i}.png") for i in range(MOST)]
    return list(takewhile(Path.is_file, found))


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from None


def _pixels(files: Sequence[Path], size: int) -> Tensor:
    return torch.stack([to_pixels(open_image(file), size) for file in files])


def _masks(files: Sequence[Sequence[Path]], size: int, each: bool) -> Tensor | None:
    """(N, M, H, W) of each object, or (N, 1, H, W) of all of them in one."""
    if not all(files):
        return None
    found = [(_pixels(own, size)[:, 0] > 0).float() for own in files]
    if not each:
        found = [own.amax(0, keepdim=True) for own in found]
    if len(counts := {len(own) for own in found}) > 1:
        raise UserError(f"the references have {sorted(counts)} masks; expected the same objects in the same order")
    return torch.stack(found)


@dataclass
class Prior:
    """Pictures of the class that the backbone painted itself: prompts and moments (N, 2C, h, w)."""

    prompts: Sequence[str]
    moments: Tensor
    weight: float


class ReferenceData(L.LightningDataModule):
    """Endless batches of references; each is a function of (seed, number of the batch), so resuming is exact.

    All references of a batch share one prompt, so that it is encoded once, unless the method needs texts of their own.
    With a prior, as many pictures of the class come behind them, with prompts of their own.

    Raises:
        UserError: a text without the method's placeholder.
    """

    def __init__(
        self, method: Method, references: References, batch_size: int, seed: int, flip: bool = True,
        prior: Prior | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.method, self.references, self.prior = method, references, prior
        self.batch_size, self.seed, self.step = batch_size, seed, 0
        words = [placeholder(attribute) for attribute in method.attributes]
        for text in references.texts:
            if not any(word in text for word in words):
                raise UserError(f"the reference's text {text!r} has no {' or '.join(words)}; write it where it belongs")

        def views(pictures: Tensor) -> Tensor:
            return torch.cat([pictures, pictures.flip(-1)]) if flip else pictures

        pixels = views(references.pixels)
        if references.others is not None:
            pixels = torch.cat([pixels, views(references.others)])
        self.pixels, self.moments = pixels, encode(method.backbone, pixels)
        self.masks = views(references.masks) if "masks" in method.needs else None

    def batch(self, number: int) -> dict[str, Any]:
        rng = np.random.default_rng((self.seed, number))
        rows = torch.from_numpy(self.method.rows(rng, len(self.pixels), self.batch_size))
        batch = {"latent": self.moments[rows], "pixels": self.pixels[rows]}
        batch["prompt"] = [self.method.prompt(rng)] * len(rows)
        if texts := self.references.texts:
            batch["prompt"] = [texts[row % len(texts)] for row in rows.tolist()]
        if self.masks is not None:
            batch["masks"] = self.masks[rows]
        if self.prior is not None:
            # One prompt for all of them, too.
            prompt = self.prior.prompts[rng.integers(len(self.prior.prompts))]
            same = np.flatnonzero([text == prompt for text in self.prior.prompts])
            rows = torch.from_numpy(rng.choice(same, size=self.batch_size))
            batch["latent"] = torch.cat([batch["latent"], self.prior.moments[rows]])
            if self.masks is not None:
                batch["masks"] = torch.cat([batch["masks"], torch.zeros_like(batch["masks"])])
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
        return {"step": self.step, "files": self.references.digest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Checkpoints of before have a hash of the pixels, which another library had resized.
        if state_dict.get("files", self.references.digest) != self.references.digest:
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
