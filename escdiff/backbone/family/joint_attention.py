"""SD 3, FLUX.1 and Qwen-Image: the text is a stream that each block updates.

A residual is added before its block and taken out of the text behind it; left in, all later blocks would read it too.
What the block made of it stays. Pooled text, where a family has one, is an argument of its own and stays stock.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from escdiff.backbone.family.blocks import Blocks
from escdiff.backbone.family.latents import SIDE, Latents
from escdiff.backbone.family.noise import FlowMatching
from escdiff.backbone.family.reading import Reading, Stream
from escdiff.backbone.family.residuals import add_residual


class Joint(Blocks):
    """A transformer whose blocks return (text, picture).

    Attributes:
        pooled: argument of the model that takes pooled text, if it has one.
    """

    noise = FlowMatching
    carrier = ("joint_attention_kwargs", "joint_attention_kwargs")
    pooled: ClassVar[str | None] = "pooled_projections"

    def text_width(self, model: nn.Module) -> int:
        return model.config.joint_attention_dim

    def enter(self, model: nn.Module, states: Tensor) -> Tensor:
        return model.context_embedder(states)

    def hook_block(self, block: nn.Module, index: int, owner: int) -> list:
        def take_out(block: nn.Module, args: tuple, kwargs: dict, output: tuple) -> tuple | None:
            carried, (text, picture) = self.carried(kwargs), output
            if carried is None or carried.owner != owner or text is None:  # SD 3's last block drops the text
                return None
            return add_residual(text, -carried.values[index], carried.positions), picture

        return [*super().hook_block(block, index, owner), block.register_forward_hook(take_out, with_kwargs=True)]


class SD3(Joint):
    """Stable Diffusion 3 and 3.5 (arXiv 2403.03206): two CLIPs' 77 tokens, padded in width, before T5's."""

    name, models = "sd3", ("SD3Transformer2DModel",)
    pipelines = ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline")
    reading = Reading(
        (
            Stream("tokenizer", "text_encoder", "prompt", clip=True),
            Stream("tokenizer_3", "text_encoder_3", "prompt_3"),
        ),
        (0, 1),
        {"pooled_projections": 2},
    )


class Flux(Joint):
    """FLUX.1: 19 blocks with two streams, then 38 with one; T5's text, CLIP's pooled."""

    name, models = "flux", ("FluxTransformer2DModel",)
    pipelines = ("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline")
    lists = ("transformer_blocks", "single_transformer_blocks")
    along_text = (("txt_ids", -2),)
    latents = Latents(packed=True)
    reading = Reading((Stream("tokenizer_2", "text_encoder_2", "prompt_2"),), (0,), {"pooled_projections": 1})

    def time_factor(self, model: nn.Module) -> float:
        return 1000.0

    def inputs(self, model: nn.Module, noisy: Tensor, tokens: int) -> dict[str, Any]:
        """Places of the picture's tokens (N, 3), row and column last, zeros for the text's; the guidance."""
        rows, columns = (torch.arange(side // SIDE, device=noisy.device) for side in noisy.shape[-2:])
        places = torch.cartesian_prod(rows, columns)
        image = torch.cat([places.new_zeros(len(places), 1), places], 1).to(noisy)
        return {"img_ids": image, "txt_ids": noisy.new_zeros(tokens, 3)} | undistilled(model, noisy)


def undistilled(model: nn.Module, noisy: Tensor) -> dict[str, Tensor]:
    """A guidance of 1, of a model that was distilled to be told one: no guidance, as a loss of pictures wants it."""
    return {"guidance": noisy.new_ones(len(noisy))} if model.config.guidance_embeds else {}


def _template(pipeline: DiffusionPipeline, given: Mapping[str, Any]) -> tuple[str, str, int]:
    """Qwen-Image asks its text encoder to describe a picture, and drops the question's tokens."""
    before, _, behind = pipeline.prompt_template_encode.partition("{}")
    return before, behind, pipeline.prompt_template_encode_start_idx


class QwenImage(Joint):
    """Qwen-Image (arXiv 2508.02324): Qwen2.5-VL's states pass a norm and a linear map; no pooled text."""

    name, models = "qwen", ("QwenImageTransformer2DModel",)
    pipelines = ("QwenImagePipeline", "QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline")
    carrier = ("attention_kwargs", "joint_attention_kwargs")
    along_text = (("encoder_hidden_states_mask", 1),)
    latents = Latents(packed=True)
    reading = Reading(
        (Stream("tokenizer", "text_encoder", "prompt", frame=_template),), (0,), {"encoder_hidden_states_mask": 1},
        guidance="true_cfg_scale",
    )  # fmt: skip
    pooled = None

    def enter(self, model: nn.Module, states: Tensor) -> Tensor:
        return model.txt_in(model.txt_norm(states))

    def time_factor(self, model: nn.Module) -> float:
        return 1000.0

    def inputs(self, model: nn.Module, noisy: Tensor, tokens: int) -> dict[str, Any]:
        """Frames, rows and columns of each picture's tokens."""
        shape = (1, *(side // SIDE for side in noisy.shape[-2:]))
        return {"img_shapes": [[shape]] * len(noisy)} | undistilled(model, noisy)
