"""Tiny random models of every family, with inputs: diffusers' own classes, built offline.

Fresh transformers have gates of zero, which would hide everything; all weights here are random.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from diffusers import (
    FluxTransformer2DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
)
from tiny import make_unet, make_unet_xl, seeded
from torch import Tensor, nn

from escdiff.backbone.family import Family, Residuals, family_of
from escdiff.conditioning import Binding, ConditioningSpace

TOKENS = 6
SIDE = 8  # of the latents


@dataclass(frozen=True)
class Case:
    """How to build a family's model and what to call it with, text apart; `noise` scales its random weights."""

    build: Callable[[], nn.Module]
    inputs: Callable[[int], dict]
    tokens: int = TOKENS
    noise: float = 0.15


def _picture(channels: int, **more: Callable[[int], object]) -> Callable[[int], dict]:
    def inputs(batch: int) -> dict:
        own = {"timestep": torch.full((batch,), 500.0), **{name: make(batch) for name, make in more.items()}}
        return {"hidden_states": torch.randn(batch, channels, SIDE, SIDE)} | own

    return inputs


def _tokens(channels: int, **more: Callable[[int], object]) -> Callable[[int], dict]:
    def inputs(batch: int) -> dict:
        own = {"timestep": torch.full((batch,), 0.5), **{name: make(batch) for name, make in more.items()}}
        return {"hidden_states": torch.randn(batch, SIDE * SIDE // 4, channels)} | own

    return inputs


def _unet(batch: int) -> dict:
    return {"sample": torch.randn(batch, 8, 16, 16), "timestep": torch.full((batch,), 500)}


def _xl(batch: int) -> dict:
    return _unet(batch) | {
        "added_cond_kwargs": {"text_embeds": torch.randn(batch, 24), "time_ids": torch.full((batch, 6), 128.0)}
    }


def _padding(batch: int) -> Tensor:
    mask = torch.ones(batch, TOKENS, dtype=torch.long)
    mask[0, -1:] = 0
    return mask


CASES = {
    "sd": Case(make_unet, _unet, tokens=77),
    "sdxl": Case(make_unet_xl, _xl, tokens=77),
    "pixart": Case(
        lambda: PixArtTransformer2DModel(
            sample_size=SIDE, num_layers=3, patch_size=2, attention_head_dim=8, num_attention_heads=3, in_channels=4,
            out_channels=8, cross_attention_dim=24, caption_channels=32, num_embeds_ada_norm=1000, norm_num_groups=1,
            use_additional_conditions=False,
        ),
        _picture(4, encoder_attention_mask=_padding),
    ),
    "sana": Case(
        lambda: SanaTransformer2DModel(
            patch_size=1, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=4, num_attention_heads=2,
            num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=8,
            sample_size=SIDE,
        ),
        _picture(4, encoder_attention_mask=_padding),
    ),
    "sd3": Case(
        lambda: SD3Transformer2DModel(
            sample_size=SIDE, patch_size=2, in_channels=4, num_layers=4, attention_head_dim=8, num_attention_heads=4,
            caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64, out_channels=4,
            dual_attention_layers=(0, 1), qk_norm="rms_norm",
        ),
        _picture(4, pooled_projections=lambda batch: torch.randn(batch, 64)),
    ),
    "flux": Case(
        lambda: FluxTransformer2DModel(
            patch_size=1, in_channels=4, num_layers=2, num_single_layers=2, attention_head_dim=16,
            num_attention_heads=2, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
        ),
        _tokens(
            4, pooled_projections=lambda batch: torch.randn(batch, 32), img_ids=lambda _: torch.zeros(16, 3),
            txt_ids=lambda _: torch.zeros(TOKENS, 3),
        ),
    ),
    "qwen": Case(
        lambda: QwenImageTransformer2DModel(
            patch_size=2, in_channels=16, out_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=4,
            joint_attention_dim=16, axes_dims_rope=(8, 4, 4),
        ),
        _tokens(16, img_shapes=lambda batch: [[(1, 4, 4)]] * batch, encoder_hidden_states_mask=_padding),
    ),
}  # fmt: skip


@seeded
def build(name: str) -> nn.Module:
    """The tiny model of a family, evaluation mode, every weight random."""
    model = CASES[name].build().eval().requires_grad_(False)
    if not name.startswith("sd") or name == "sd3":
        for weight in model.parameters():
            weight.normal_(0, CASES[name].noise)
    return model


@seeded
def make_inputs(name: str, batch: int = 2) -> dict:
    return CASES[name].inputs(batch)


@seeded
def make_text(width: int, tokens: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, tokens, width)


@seeded
def make_residuals(layers: int, width: int, batch: int = 2, stages: int = 1, scale: float = 1.0) -> Residuals:
    """Two positions in each row, another pair in each."""
    positions = torch.stack([torch.tensor([1 + row, 3 + row]) for row in range(batch)])
    return Residuals(scale * torch.randn(batch, layers, stages, 2, width), positions)


@dataclass
class Setup:
    """A model with inputs for it."""

    name: str
    model: nn.Module
    family: Family
    inputs: dict

    @property
    def space(self) -> ConditioningSpace:
        return self.family.space(self.model)

    @cached_property
    def text(self) -> Tensor:
        return make_text(self.family.text_width(self.model), CASES[self.name].tokens)

    @cached_property
    def residuals(self) -> Residuals:
        return make_residuals(self.space.num_layers, self.family.layer_width(self.model))

    def run(self, text: Tensor, **changed) -> Tensor:
        return self.model(**self.inputs | changed, encoder_hidden_states=text).sample

    def pack(self, residuals: Residuals, text: Tensor | None = None) -> Tensor:
        return self.family.pack(self.model, self.space, self.text if text is None else text, residuals)

    def attach(self) -> Binding:
        return self.family.attach(self.model, self.space)


def make_setup(name: str) -> Setup:
    model = build(name)
    return Setup(name, model, family_of(model), make_inputs(name))


def texts_read(setup: Setup, text: Tensor) -> list[Tensor]:
    """What every layer reads, in execution order."""
    seen, handles = {}, []
    for cell in setup.space.cells:
        name = cell[0]

        def see(module, args, kwargs, name=name):
            given = dict(zip(inspect.signature(module.forward).parameters, args, strict=False)) | kwargs
            seen[name] = given["encoder_hidden_states"]

        handles.append(setup.model.get_submodule(name).register_forward_pre_hook(see, with_kwargs=True))
    setup.run(text)
    for handle in handles:
        handle.remove()
    assert tuple(seen) == tuple(cell[0] for cell in setup.space.cells)  # the order is that of execution
    return list(seen.values())
