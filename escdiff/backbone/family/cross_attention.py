"""PixArt and Sana: the text is the same for all blocks, which attend to it, so a residual stays in its block.

Text keeps its length, hence the masks of padding hold as they are.
"""

from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from escdiff.backbone.family.blocks import TEXT, Blocks, Carried
from escdiff.backbone.family.noise import Diffusion, FlowMatching
from escdiff.backbone.family.reading import Reading, Stream
from escdiff.conditioning import Binding, ConditioningSpace

PIXELS = 8  # per latent, of PixArt's VAE


class PixArt(Blocks):
    """PixArt-alpha (arXiv 2310.00426) and Sigma (2403.04692). T5's states pass a two-layer projection."""

    name, models = "pixart", ("PixArtTransformer2DModel",)
    pipelines = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
    noise = Diffusion
    carrier = ("cross_attention_kwargs", "cross_attention_kwargs")
    along_text = (("encoder_attention_mask", -1),)
    reading = Reading(
        (Stream("tokenizer", "text_encoder", "prompt"),), (0, 2), {"encoder_attention_mask": 1}, lower=True,
        options={"use_resolution_binning": False, "clean_caption": False},
    )  # fmt: skip
    splices = True

    def text_width(self, model: nn.Module) -> int:
        return model.config.caption_channels

    def enter(self, model: nn.Module, states: Tensor) -> Tensor:
        return model.caption_projection(states)

    def inputs(self, model: nn.Module, noisy: Tensor, tokens: int) -> dict[str, Any]:
        """The size in pixels and the aspect ratio, where the checkpoint was trained on several."""
        known = {"resolution": None, "aspect_ratio": None}
        if model.use_additional_conditions:
            height, width = (PIXELS * side for side in noisy.shape[-2:])
            batch = len(noisy)
            known = {
                "resolution": noisy.new_tensor([[height, width]]).repeat(batch, 1),
                "aspect_ratio": noisy.new_tensor([[height / width]]).repeat(batch, 1),
            }
        return {"added_cond_kwargs": known}


_pending: ContextVar[Carried | None] = ContextVar("escdiff_sana_residuals", default=None)


def _instructed(pipeline: DiffusionPipeline, given: Mapping[str, Any]) -> tuple[str, str, int]:
    """Sana's instruction stands before a prompt; of all its tokens the text keeps two, the first and the last."""
    before = "\n".join(given.get("complex_human_instruction") or ())
    return before, "", len(pipeline.tokenizer.encode(before)) - 2 if before else 0


class Sana(Blocks):
    """Sana (arXiv 2410.10629). Gemma's states pass a projection and a norm; blocks take no dictionary.

    So the residuals go with the text itself, as a pair, from the norm, the last module that sees it before the blocks.
    """

    name, models = "sana", ("SanaTransformer2DModel",)
    pipelines = ("SanaPipeline", "SanaPAGPipeline")
    noise = FlowMatching
    along_text = (("encoder_attention_mask", -1),)
    reading = Reading(
        (Stream("tokenizer", "text_encoder", "prompt", frame=_instructed),), (0, 2), {"encoder_attention_mask": 1},
        lower=True, options={"use_resolution_binning": False, "clean_caption": False},
    )  # fmt: skip
    splices = True

    def text_width(self, model: nn.Module) -> int:
        return model.config.caption_channels

    def layer_width(self, model: nn.Module) -> int:
        return model.config.num_attention_heads * model.config.attention_head_dim

    def enter(self, model: nn.Module, states: Tensor) -> Tensor:
        return model.caption_norm(model.caption_projection(states))

    def time_factor(self, model: nn.Module) -> float:
        return 1 / model.config.timestep_scale

    def attach(self, model: nn.Module, space: ConditioningSpace) -> Binding:
        binding = super().attach(model, space)
        return Binding([
            binding,
            model.caption_norm.register_forward_hook(_join),
            model.register_forward_hook(_forget, always_call=True),
        ])  # fmt: skip

    def hand_on(self, given: dict, carried: Carried) -> None:
        _pending.set(carried)  # of this thread, until the norm has run

    def carried(self, given: dict) -> Carried | None:
        if not isinstance(given[TEXT], tuple):
            return None
        given[TEXT], carried = given[TEXT]
        return carried


def _join(norm: nn.Module, args: tuple, text: Tensor) -> tuple[Tensor, Carried] | None:
    carried = _pending.get()
    _pending.set(None)
    return None if carried is None else (text, carried)


def _forget(*_) -> None:
    """Forward hook of the model: what a failed call left is not the next one's."""
    _pending.set(None)
