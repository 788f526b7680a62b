"""The oracle: a small convolutional network that reads the factors back from a picture.

It judges what the diffusion model paints; it shares no weights with the model or the concept encoder. Its own
error on fresh renders belongs beside every figure it gives (`python -m escdiff.evaluation esc-bench`).
"""

import json
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from escdiff.errors import UserError
from escdiff.still_life import world

CLASSES = {
    "family": world.FAMILIES,
    "pattern": world.PATTERNS,
    "color": tuple(world.COLORS),
    "color2": tuple(world.COLORS),
    "finish": world.FINISHES,
    "background": tuple(world.BACKGROUNDS),
}
VALUES = {"params": 4, "rgb": 3, "rgb2": 3, "gloss": 1}
CHANNELS = (32, 48, 80, 128)
COLORS = ("color", "color2", "rgb", "rgb2")  # heads that also read swatches
SWATCHES, SWATCH_WIDTH = 4, 32
FINE = 7  # layers of the trunk up to the maps of 32 x 32
WEIGHTS, CONFIG = "model.safetensors", "config.json"


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.body(x))


class _Swatches(nn.Module):
    """Mean colours of the places that the picture's features look for: pooled maps forget exact colours."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.keys = nn.Conv2d(channels, SWATCH_WIDTH, 1)
        self.queries = nn.Linear(width, SWATCHES * SWATCH_WIDTH)

    def forward(self, pixels: Tensor, maps: Tensor, features: Tensor) -> Tensor:
        """pixels (B, 3, H, W), maps (B, C, h, w), features (B, F) -> (B, SWATCHES * 3)."""
        colors = nn.functional.adaptive_avg_pool2d(pixels, maps.shape[-2:]).flatten(2)
        queries = self.queries(features).unflatten(1, (SWATCHES, SWATCH_WIDTH))
        places = (queries @ self.keys(maps).flatten(2) * SWATCH_WIDTH**-0.5).softmax(-1)
        return (places @ colors.transpose(1, 2)).flatten(1)


class Oracle(nn.Module):
    """Pictures to factors. 0.7 M parameters; the last maps are pooled by mean and by maximum."""

    def __init__(self, channels: tuple[int, ...] = CHANNELS) -> None:
        super().__init__()
        self.channels = tuple(channels)
        layers: list[nn.Module] = []
        for before, after in zip((3, *channels), channels, strict=False):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)]
            if before != 3:  # none at 64x64: too costly for what it adds
                layers.append(_Block(after))
        self.trunk = nn.Sequential(*layers)
        width = 2 * channels[-1]
        self.neck = nn.Sequential(nn.Linear(width, width), nn.ReLU(inplace=True))
        self.swatches = _Swatches(channels[1], width)
        self.palette = nn.Sequential(nn.Linear(width + 3 * SWATCHES, width), nn.ReLU(inplace=True))
        sizes = {name: len(words) for name, words in CLASSES.items()} | VALUES
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in sizes.items()})

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """pixels (B, 3, 128, 128) in [-1, 1] -> logits (B, classes) per name of `CLASSES`, values per `VALUES`."""
        fine = self.trunk[:FINE](pixels)
        maps = self.trunk[FINE:](fine)
        features = self.neck(torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], -1))
        colors = self.palette(torch.cat([features, self.swatches(pixels, fine, features)], -1))
        return {name: head(colors if name in COLORS else features) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, pixels: Tensor) -> dict[str, Tensor]:
        """As `forward`, in evaluation mode and without gradients."""
        training = self.training
        self.eval()
        out = self(pixels)
        self.train(training)
        return out

    def save_pretrained(self, folder: Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        half = {k: v.half() if v.is_floating_point() else v for k, v in self.state_dict().items()}
        safetensors.torch.save_file({k: v.contiguous() for k, v in half.items()}, folder / WEIGHTS)
        (folder / CONFIG).write_text(json.dumps({"channels": self.channels}) + "\n")

    @classmethod
    def from_pretrained(cls, folder: Path | None = None) -> "Oracle":
        """Load the oracle of `folder`, or the bundled one.

        Raises:
            UserError: there is none.
        """
        folder = Path(folder) if folder else Path(__file__).parents[1] / "assets" / "mini" / "oracle"
        if not (folder / WEIGHTS).is_file():
            what = f"no oracle in {folder}"
            raise UserError(f"{what}; train it with `python train.py experiment=mini/oracle` or name another folder")
        oracle = cls(tuple(json.loads((folder / CONFIG).read_text())["channels"]))
        oracle.load_state_dict(safetensors.torch.load_file(folder / WEIGHTS))
        return oracle.float().eval()
