"""Conditioning spaces: a U-Net's cross-attention layers and the diffusion time, partitioned into cells.

P (Textual Inversion, arXiv 2208.01618) is 1 x 1, P+ (arXiv 2303.09522) is layers x 1, ProSpect (2305.16225)
is 1 x stages. Legend: L layer cell, S stage.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import index

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from escdiff.support.errors import UserError

TRAIN_TIMESTEPS = 1000
# The mid block runs between the halves, although the module tree (and `unet.attn_processors`) lists it last.
EXECUTION_ORDER = ("down_blocks", "mid_block", "up_blocks")


def cross_attention_layers(unet: nn.Module) -> tuple[str, ...]:
    """Names of the U-Net's cross-attention modules (`attn2`) in execution order: down, mid, up.

    SD 1.x and 2.x have 16 (the mid block's is number 6), SDXL has 70.

    Raises:
        UserError: the model has no such layer, or one outside the blocks of a diffusers U-Net.
    """
    attentions = [(name, module) for name, module in unet.named_modules() if isinstance(module, Attention)]
    names = [name for name, module in attentions if module.is_cross_attention]
    strangers = [name for name in names if name.split(".")[0] not in EXECUTION_ORDER]
    if strangers or not names:
        found = f"a cross-attention layer at {strangers[0]!r}" if strangers else "no cross-attention layer"
        raise UserError(
            f"{type(unet).__name__} has {found}; expected them inside {', '.join(EXECUTION_ORDER)}: "
            "give the plain UNet2DConditionModel of a Stable Diffusion checkpoint"
        )
    return tuple(sorted(names, key=lambda name: EXECUTION_ORDER.index(name.split(".")[0])))


def layer_groups(unet: nn.Module) -> dict[str, tuple[str, ...]]:
    """Cross-attention layers by the transformer they sit in, in execution order.

    The unit of P+: SD 1.x has one layer in each of 16 groups, SDXL has 70 layers in 11 groups.

    Returns:
        Such as `{"mid_block.attentions.0": ("mid_block.attentions.0.transformer_blocks.0.attn2",), ...}`.
    """
    groups: dict[str, list[str]] = {}
    for name in cross_attention_layers(unet):
        groups.setdefault(name.split(".transformer_blocks.")[0], []).append(name)
    return {group: tuple(names) for group, names in groups.items()}


@dataclass(frozen=True)
class ConditioningSpace:
    """A partition of layers x diffusion time; every cell takes its own text conditioning.

    Attributes:
        cells: layer names of every layer cell, in execution order; no name twice.
        stage_bounds: ascending timestep indices from 0; stage `s` is `[bounds[s], bounds[s + 1])`, so that
            stage 0 has the least noise.

    Raises:
        UserError: an empty or overlapping partition.
    """

    cells: tuple[tuple[str, ...], ...]
    stage_bounds: tuple[int, ...] = (0, TRAIN_TIMESTEPS)

    def __post_init__(self) -> None:
        names = self.layer_names
        if not names or not all(self.cells) or len(set(names)) != len(names):
            raise UserError(f"the cells of a space must be non-empty and share no layer, not {self.cells}")
        bounds = self.stage_bounds
        if len(bounds) < 2 or bounds[0] != 0 or list(bounds) != sorted(set(bounds)):
            raise UserError(f"stage bounds {bounds} were given, expected them to ascend from 0, as (0, 500, 1000)")

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of all layers, by cell and execution."""
        return tuple(name for cell in self.cells for name in cell)

    @property
    def num_layers(self) -> int:
        """L, the number of layer cells."""
        return len(self.cells)

    @property
    def num_stages(self) -> int:
        """S, the number of stages."""
        return len(self.stage_bounds) - 1

    def stage_of(self, timesteps: Tensor) -> Tensor:
        """Stage index (int64, same shape) of timestep indices 0-999; beyond, the outermost stages."""
        inner = torch.tensor(self.stage_bounds[1:-1], device=timesteps.device, dtype=timesteps.dtype)
        return torch.bucketize(timesteps.contiguous(), inner, right=True)

    def join(self, other: "ConditioningSpace") -> "ConditioningSpace":
        """The space whose cells have room for both: P+ and ten stages give layers x ten stages.

        Raises:
            UserError: both cut the layers, or both the time, and not alike.
        """
        if self.num_layers > 1 < other.num_layers and self.cells != other.cells:
            raise UserError(
                f"spaces of {self.num_layers} and {other.num_layers} layer cells do not go together; "
                "use concepts of one method"
            )
        if self.num_stages > 1 < other.num_stages and self.stage_bounds != other.stage_bounds:
            raise UserError(
                f"stages {self.stage_bounds} and {other.stage_bounds} do not go together; use concepts of one method"
            )
        return ConditioningSpace(
            max(self.cells, other.cells, key=len), max(self.stage_bounds, other.stage_bounds, key=len)
        )

    def to_metadata(self) -> dict[str, str]:
        """The space as the string pairs that a safetensors header holds."""
        return {"space.cells": json.dumps(self.cells), "space.stage_bounds": json.dumps(self.stage_bounds)}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> "ConditioningSpace":
        """Inverse of `to_metadata`; other keys are ignored.

        Raises:
            UserError: the keys are missing or do not describe a space.
        """
        try:
            cells = tuple(tuple(str(name) for name in cell) for cell in json.loads(metadata["space.cells"]))
            return cls(cells, tuple(int(bound) for bound in json.loads(metadata["space.stage_bounds"])))
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise UserError(
                f"the metadata hold no readable conditioning space ({error!r}); expected 'space.cells' and "
                "'space.stage_bounds' as JSON: write the file again with this program"
            ) from error

    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that two equal spaces share, on any machine."""
        return hashlib.sha256(json.dumps(self.to_metadata(), sort_keys=True).encode()).hexdigest()[:12]

    @classmethod
    def p(cls, unet: nn.Module) -> "ConditioningSpace":
        """P: all layers and all times share one conditioning, as in stock Stable Diffusion."""
        return cls.build(unet, layers="tied")

    @classmethod
    def p_plus(cls, unet: nn.Module) -> "ConditioningSpace":
        """P+: one cell per transformer, 16 in SD 1.x and 2.x, 11 in SDXL."""
        return cls.build(unet, layers="each")

    @classmethod
    def build(cls, unet: nn.Module, layers: str = "tied", stages: int | Sequence[int] = 1) -> "ConditioningSpace":
        """A space over this U-Net; see `partition`, whose finest cells are its transformers."""
        return cls.partition(layer_groups(unet).values(), layers, stages)

    @classmethod
    def partition(
        cls, cells: Iterable[Sequence[str]], layers: str = "each", stages: int | Sequence[int] = 1
    ) -> "ConditioningSpace":
        """A space over a model's finest cells.

        Args:
            layers: "tied" (one cell of them all) or "each".
            stages: a number of equal intervals of the 1000 timesteps, or the bounds themselves.

        Raises:
            UserError: another word for `layers`, or bounds that do not ascend from 0 to 1000.
        """
        if layers not in ("tied", "each"):
            raise UserError(f"layers={layers!r} was given; expected 'tied' or 'each'")
        cells = tuple(tuple(cell) for cell in cells)
        cells = cells if layers == "each" else (tuple(name for cell in cells for name in cell),)
        return cls(cells, read_stages(stages))


def read_stages(stages: int | Sequence[int]) -> tuple[int, ...]:
    """Bounds of a number of equal stages, or those that are given.

    Raises:
        UserError: neither, or bounds that do not end with the last timestep, so that some would belong to no stage.
    """
    expected = f"expected 1 to {TRAIN_TIMESTEPS}, or bounds from 0 to {TRAIN_TIMESTEPS} such as [0,600,1000]"
    try:
        bounds = stages if isinstance(stages, int) else tuple(index(bound) for bound in stages)
    except TypeError:
        raise UserError(f"stages={stages} was given; {expected}") from None
    if isinstance(bounds, int):
        if not 1 <= bounds <= TRAIN_TIMESTEPS:
            raise UserError(f"stages={stages} was given; {expected}")
        return tuple(round(TRAIN_TIMESTEPS * stage / bounds) for stage in range(bounds + 1))
    if bounds[-1:] != (TRAIN_TIMESTEPS,):
        raise UserError(f"stages={stages} was given; {expected}")
    return bounds
