"""The oracle: a convolutional network that reads the factors back from a picture, and tells instances apart.

It judges what the diffusion model paints; it shares no weights with the model or the concept encoder. Its own
error on fresh renders belongs beside every figure it gives (`python -m escdiff.evaluation esc-bench`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from escdiff.mini.judge import Judge, level, neck, words_of
from escdiff.mini.world import world

# Heads that also read swatches: colours tell materials apart, and must not tell shapes apart.
COLORED = ("color", "color2", "rgb", "rgb2")
SWATCHES, SWATCH_WIDTH = 4, 32
FIRST_FAMILIES, FIRST_PATTERNS = world.FAMILIES[:20], world.PATTERNS[:10]


def _classes(families: tuple[str, ...], patterns: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {
        "family": families,
        "pattern": patterns,
        "color": tuple(world.COLORS),
        "color2": tuple(world.COLORS),
        "finish": world.FINISHES,
        "background": tuple(world.BACKGROUNDS),
    }


CLASSES = _classes((*FIRST_FAMILIES, world.THING), (*FIRST_PATTERNS, world.TEXTURED))
VALUES = {"params": 4, "rgb": 3, "rgb2": 3, "gloss": 1, "scale": 1, "angle": 1}
EMBEDDINGS = {"shape_id": 128, "material_id": 128}  # near for two views of one instance, far for another of its name
# Heads by the network that they read.
READERS = (
    ("family", "params", "background"),
    ("pattern", "scale", "angle"),
    COLORED,
    ("finish", "gloss"),
)
SEEN = {"shape_id": (0,), "material_id": (1, 2)}  # by an embedding: numbers of networks


@dataclass(frozen=True)
class OracleConfig:
    """Configuration of an oracle, as its config.json holds it.

    Attributes:
        channels, blocks: of the trunk's levels, at 64, 32, 16 and 8 positions a side.
        pooled: how many of the last levels the heads see; the finer ones keep small patterns and highlights.
        normalised: whether what is pooled is normalised: without, patterns are hardly learned (docs/log.md).
        classes: head -> the words it chooses from.
        values: head -> how many numbers in 0..1 it reads.
        embeddings: name -> width of a vector of length 1.
        readers: heads, in groups that have a network each.
        seen: embedding -> numbers of the networks whose features it is made of.
    """

    channels: tuple[int, ...] = (32, 64, 112, 176)
    blocks: tuple[int, ...] = (1, 2, 2, 2)
    pooled: int = 3
    normalised: bool = True
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: CLASSES)
    values: Mapping[str, int] = field(default_factory=lambda: VALUES)
    embeddings: Mapping[str, int] = field(default_factory=lambda: EMBEDDINGS)
    readers: tuple[tuple[str, ...], ...] = READERS
    seen: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: SEEN)

    @property
    def width(self) -> int:
        """Features of a network that heads read."""
        return 2 * self.channels[-1]

    @classmethod
    def read(cls, file: Path) -> "OracleConfig":
        """Of a config.json; the first version names its channels only and reads named things only."""
        stored = json.loads(file.read_text(encoding="utf-8"))
        if "classes" not in stored:
            values = {"params": 4, "rgb": 3, "rgb2": 3, "gloss": 1}
            classes = _classes(FIRST_FAMILIES, FIRST_PATTERNS)
            return cls(
                tuple(stored["channels"]), (0, 1, 1, 1), 1, False, classes, values, {}, ((*classes, *values),), {}
            )
        words, seen = words_of(stored.pop("classes")), words_of(stored.pop("seen"))
        trunk = {name: tuple(stored.pop(name)) for name in ("channels", "blocks")}
        readers = tuple(tuple(heads) for heads in stored.pop("readers"))
        return cls(**trunk, classes=words, readers=readers, seen=seen, **stored)


def _mean(maps: Tensor) -> Tensor:
    return maps.mean((2, 3))


def _most(maps: Tensor) -> Tensor:
    return maps.amax((2, 3))


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


class _Reader(nn.Module):
    """A trunk and the heads that read it; maps of several levels are pooled by mean and by maximum."""

    def __init__(self, config: OracleConfig, names: Sequence[str]) -> None:
        super().__init__()
        self.pooled = config.pooled
        layers: list[nn.Module] = []
        self.ends: list[int] = []  # layers of the trunk up to the end of each level
        for depth, (before, after) in enumerate(zip((3, *config.channels), config.channels, strict=False)):
            layers += level(before, after, config.blocks[depth])
            self.ends.append(len(layers))
        self.trunk = nn.Sequential(*layers)
        pooled = 2 * sum(config.channels[-config.pooled :])
        width = config.width
        self.neck = neck(pooled, width) if config.normalised else nn.Sequential(nn.Linear(pooled, width), nn.ReLU())
        if set(names) & set(COLORED):
            self.swatches = _Swatches(config.channels[1], width)
            self.palette = nn.Sequential(nn.Linear(width + 3 * SWATCHES, width), nn.ReLU(inplace=True))
        sizes = {name: len(words) for name, words in config.classes.items()} | dict(config.values)
        self.heads = nn.ModuleDict({name: nn.Linear(width, size) for name, size in sizes.items() if name in names})

    def forward(self, pixels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """pixels (B, 3, H, W) -> heads' outputs, and the features that they read last (B, width)."""
        levels, maps = [], pixels
        for start, end in pairwise((0, *self.ends)):
            maps = self.trunk[start:end](maps)
            levels.append(maps)
        seen = levels[-self.pooled :]
        features = colors = self.neck(torch.cat([pool(maps) for maps in seen for pool in (_mean, _most)], -1))
        if hasattr(self, "palette"):
            colors = self.palette(torch.cat([features, self.swatches(pixels, levels[1], features)], -1))
        out = {name: head(colors if name in COLORED else features) for name, head in self.heads.items()}
        return out, colors


class Oracle(Judge):
    """Pictures to factors and identities."""

    name, settings = "oracle", OracleConfig

    def __init__(self, config: OracleConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or OracleConfig()
        self.readers = nn.ModuleList(_Reader(config, names) for names in config.readers)
        self.identities = nn.ModuleDict(
            {name: _embedding(len(config.seen[name]) * config.width, size) for name, size in config.embeddings.items()}
        )
        self.register_load_state_dict_pre_hook(_of_before)

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        """pixels (B, 3, 128, 128) in [-1, 1] -> logits (B, classes), values (B, n), unit vectors (B, width)."""
        heads, features = zip(*(reader(pixels) for reader in self.readers), strict=True)
        out = {name: value for values in heads for name, value in values.items()}
        return out | {name: self._identity(name, features) for name in self.identities}

    def embed(self, name: str, pixels: Tensor) -> Tensor:
        """As `Judge.embed`, by the networks that the embedding sees alone."""
        return self._evaluate(self._embed, name, pixels)

    def _embed(self, name: str, pixels: Tensor) -> Tensor:
        return self._identity(name, {n: self.readers[n](pixels)[1] for n in self.config.seen[name]})

    def _identity(self, name: str, features: Sequence[Tensor] | Mapping[int, Tensor]) -> Tensor:
        """(B, D) of length 1, of the features by the number of their network."""
        seen = torch.cat([features[n] for n in self.config.seen[name]], -1)
        return nn.functional.normalize(self.identities[name](seen), dim=-1)


def _embedding(seen: int, size: int) -> nn.Sequential:
    """One layer: two learned the line-ups by heart (docs/log.md)."""
    return nn.Sequential(nn.BatchNorm1d(seen, affine=False), nn.Linear(seen, size))


def _of_before(oracle: Oracle, state: dict[str, Tensor], prefix: str, *_) -> None:
    """Names of weights from when an oracle was one network."""
    own = [name.removeprefix(prefix) for name in state if name.startswith(prefix)]
    for name in own:
        if not name.startswith(("readers.", "identities.")):
            state[f"{prefix}readers.0.{name}"] = state.pop(prefix + name)
