"""Transformers: a layer is a block, which gets a residual of its own on the text it reads.

Hooks on the model and its blocks, all of them functions of their arguments alone: the model's takes the residuals
from behind the text and hands them on through an argument that the model passes to each block. So threads may share
the model, and gradient checkpointing gives a block the same residual again.
"""

import inspect
from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from itertools import count
from typing import Any, ClassVar, NamedTuple

import torch
from diffusers.utils.torch_utils import unwrap_module
from torch import Tensor, nn

from escdiff.backbone.family.base import Family
from escdiff.backbone.family.caches import refuse_caches
from escdiff.backbone.family.residuals import Residuals, add_residual, read_rows, write_rows
from escdiff.conditioning import Binding, ConditioningSpace
from escdiff.conditioning.binding import forget_compiled, is_compiled
from escdiff.support.errors import UserError

KEY = "escdiff_residuals"
TEXT = "encoder_hidden_states"
_attachments = count()


class Carried(NamedTuple):
    """What the model's hook hands on to the blocks'."""

    values: tuple[Tensor, ...]  # of every layer (B, K, W)
    positions: Tensor  # (B, K)
    owner: int  # the attachment that took them off: pipelines that share a model each have their own


class Blocks(Family):
    """A transformer whose blocks take the text as `encoder_hidden_states`.

    Attributes:
        lists: attributes of the model that hold its blocks, in execution order.
        carrier: argument of the model, a dictionary that it passes to every block, and that argument's name there.
        attentions: children of a block that are called with the dictionary's entries as arguments.
        along_text: other arguments of the model with an axis of tokens, each with that axis.
    """

    lists: ClassVar[tuple[str, ...]] = ("transformer_blocks",)
    carrier: ClassVar[tuple[str, str]]
    attentions: ClassVar[tuple[str, ...]] = ("attn", "attn1", "attn2")
    along_text: ClassVar[tuple[tuple[str, int], ...]] = ()

    @abstractmethod
    def enter(self, model: nn.Module, states: Tensor) -> Tensor: ...

    def layer_width(self, model: nn.Module) -> int:
        return model.inner_dim

    def cells(self, model: nn.Module) -> tuple[tuple[str, ...], ...]:
        return tuple((f"{part}.{index}",) for part in self.lists for index in range(len(getattr(model, part))))

    def write(self, text_BTD: Tensor, residuals: Residuals) -> Tensor:
        return write_rows(text_BTD, residuals)

    def inputs(self, model: nn.Module, noisy: Tensor, tokens: int) -> dict[str, Any]:
        """What the model takes beside latents, time and text; none by default.

        Args:
            noisy: (B, C, h, w). tokens: T of the text, or more.
        """
        return {}

    def predict(self, model: nn.Module, noisy: Tensor, timesteps: Tensor, text: Mapping[str, Tensor]) -> Tensor:
        """What the model predicts (B, C, h, w) of noised latents (B, C, h, w) at timesteps (B) of 0-1000.

        Args:
            text: arguments of the model: the text, packed or not, as `encoder_hidden_states`, and `Reading.arguments`.
        """
        own = self.inputs(model, noisy, text[TEXT].shape[1])
        time = (timesteps.float() / self.time_factor(model)).to(noisy.device)  # as pipelines pass it: bfloat16 rounds
        output = model(hidden_states=self.latents.pack(noisy), timestep=time, **own, **text, return_dict=False)[0]
        output = self.latents.unpack(output, *noisy.shape[-2:])
        return output[:, : noisy.shape[1]]  # PixArt predicts a variance behind it

    def attach(self, model: nn.Module, space: ConditioningSpace) -> Binding:
        model, compiled = unwrap_module(model), is_compiled(model)
        self.check_space(model, space)
        if space.num_stages > 1:
            refuse_caches(model)
        owner = next(_attachments)
        receive = partial(self._receive, space=space, owner=owner, names=_arguments(model))
        handles = [model.register_forward_pre_hook(receive, with_kwargs=True)]
        for index, name in enumerate(self.layers(model)):
            handles += self.hook_block(model.get_submodule(name), index, owner)
        return Binding([*handles, *forget_compiled(compiled)])

    def hook_block(self, block: nn.Module, index: int, owner: int) -> list:
        """Handles of the hooks that give a block its residual."""
        give = partial(self._give, index=index, owner=owner, names=_arguments(block))
        inner = [child for name in self.attentions if isinstance(child := getattr(block, name, None), nn.Module)]
        return [
            block.register_forward_pre_hook(give, with_kwargs=True),
            *(child.register_forward_pre_hook(_keep_back, with_kwargs=True) for child in inner),
        ]

    def hand_on(self, given: dict[str, Any], carried: Carried) -> None:
        """Put the residuals where every block is given them."""
        given[self.carrier[0]] = {**(given.get(self.carrier[0]) or {}), KEY: carried}

    def carried(self, given: Mapping[str, Any]) -> Carried | None:
        """What a block was given."""
        return (given.get(self.carrier[1]) or {}).get(KEY)

    def _receive(
        self, model: nn.Module, args: tuple, kwargs: dict, space: ConditioningSpace, owner: int, names: tuple[str, ...]
    ) -> tuple[tuple, dict] | None:
        given = dict(zip(names, args, strict=False)) | kwargs
        found = None if given.get(TEXT) is None else read_rows(given[TEXT], self.layer_width(model))
        if found is None:
            return None
        given[TEXT], residuals = found
        cells = tuple(residuals.values.shape[1:3])
        if cells != (space.num_layers, space.num_stages):
            raise UserError(
                f"the {self.name} was given a text packed for {cells[0]} layers and {cells[1]} stages, but it is "
                f"attached with {space.num_layers} and {space.num_stages}: pack it for this model's space"
            )
        if space.num_stages > 1:
            refuse_caches(model)
        tokens = given[TEXT].shape[1]
        for name, axis in self.along_text:
            if given.get(name) is not None:
                given[name] = given[name].narrow(axis, 0, tokens)
        time = torch.as_tensor(given["timestep"], device=residuals.values.device) * self.time_factor(model)
        stage_B = space.stage_of(time).expand(len(residuals.values))
        self.hand_on(given, Carried(residuals.at(stage_B), residuals.positions, owner))
        return (), given

    def _give(
        self, block: nn.Module, args: tuple, kwargs: dict, index: int, owner: int, names: tuple[str, ...]
    ) -> tuple[tuple, dict] | None:
        given = dict(zip(names, args, strict=False)) | kwargs
        carried = self.carried(given)
        if carried is None or carried.owner != owner:
            return None
        given[TEXT] = add_residual(given[TEXT], carried.values[index], carried.positions)
        return (), given


def _keep_back(attention: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """Pre-hook of a block's attention, which would be given it as an argument."""
    return args, {name: value for name, value in kwargs.items() if name != KEY}


def _arguments(module: nn.Module) -> tuple[str, ...]:
    return tuple(inspect.signature(module.forward).parameters)
