"""Common parts of the bundled model's judges: a block of layers, reading without gradients, and files."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self

import safetensors.torch
import torch
from torch import Tensor, nn

from escdiff.support.errors import UserError
from escdiff.support.files import save_tensors, write_json

WEIGHTS, CONFIG = "model.safetensors", "config.json"


class Block(nn.Module):
    """Two convolutions around which the input goes on."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        nn.init.zeros_(self.body[-1].weight)  # a block begins as the identity (Goyal et al. 2017, section 5.1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) -> the same."""
        return torch.relu(x + self.body(x))


def level(before: int, after: int, blocks: int) -> list[nn.Module]:
    """Layers that halve the sides: a strided convolution and some blocks."""
    strided = [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
    return [*strided, *(Block(after) for _ in range(blocks))]


def neck(pooled: int, width: int) -> nn.Sequential:
    """Layers from pooled maps (B, pooled) to features (B, width).

    Means and maxima of maps differ much in size; without normalising them patterns were hardly learned (docs/log.md).
    """
    normalised = nn.BatchNorm1d(pooled), nn.Linear(pooled, width, bias=False), nn.BatchNorm1d(width)
    return nn.Sequential(*normalised, nn.ReLU(inplace=True))


class Judge(nn.Module):
    """A network that reads pictures, with a dataclass `config` from which it is built again.

    Attributes:
        name: of the recipe that trains it, and of its folder.
        settings: class of `config`, with `read(file)`.
    """

    name: ClassVar[str]
    settings: ClassVar[type]
    config: Any

    def read(self, pixels: Tensor) -> dict[str, Tensor]:
        """Run `forward` in evaluation mode and without gradients."""
        return self._evaluate(self, pixels)

    def embed(self, name: str, pixels: Tensor) -> Tensor:
        """The vectors (B, D) of one embedding, as `read` gives them."""
        return self.read(pixels)[name]

    @torch.no_grad()
    def _evaluate(self, run: Callable, *arguments) -> Any:
        training = self.training
        self.eval()
        out = run(*arguments)
        self.train(training)
        return out

    def save_pretrained(self, folder: Path) -> None:
        """Write float16 weights and config.json."""
        half = {k: v.half() if v.is_floating_point() else v for k, v in self.state_dict().items()}
        save_tensors(Path(folder) / WEIGHTS, half, {"format": "pt"})
        write_json(Path(folder) / CONFIG, asdict(self.config))

    @classmethod
    def from_pretrained(cls, folder: Path | None = None) -> Self:
        """Load the judge of `folder`, or the bundled one.

        Raises:
            UserError: there is none.
        """
        folder = Path(folder) if folder else cls.bundled()
        if not (folder / WEIGHTS).is_file():
            problem = f"no {cls.name} in {folder}"
            raise UserError(
                f"{problem}; train it with `python train.py experiment=mini/{cls.name}` or name another folder"
            )
        judge = cls(cls.settings.read(folder / CONFIG))
        judge.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
        return judge.float().eval()

    @classmethod
    def find(cls, folder: Path | None = None) -> Self | None:
        """The judge of `folder`, which must be there; else the bundled one, or None where there is none.

        Raises:
            UserError: there is none in `folder`.
        """
        return cls.from_pretrained(folder) if folder or (cls.bundled() / WEIGHTS).is_file() else None

    @classmethod
    def bundled(cls) -> Path:
        """Folder of the judge that comes with the program, if one does."""
        return Path(__file__).parents[1] / "assets" / "mini" / cls.name


def words_of(stored: Mapping[str, list[str]]) -> dict[str, tuple[str, ...]]:
    """Head -> its words, from JSON, which knows no tuples."""
    return {name: tuple(choices) for name, choices in stored.items()}
