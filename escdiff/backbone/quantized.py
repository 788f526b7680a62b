"""Frozen weights in 8 bits (LLM.int8(), arXiv 2208.07339) or 4 (NF4, arXiv 2305.14314), by bitsandbytes.

diffusers and transformers round linear layers while they read them; gradients pass through to what is learned.
"""

from collections.abc import Mapping
from typing import Any

import diffusers
import torch
import transformers
from diffusers.quantizers import PipelineQuantizationConfig

from escdiff.support.errors import UserError
from escdiff.support.optional import need

SETTINGS = {
    "8bit": lambda dtype: {"load_in_8bit": True},
    "4bit": lambda dtype: {
        "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": dtype,
    },
}  # fmt: skip


def quantization(
    kind: str, parts: Mapping[str, Any], dtype: torch.dtype, texts: bool = True
) -> PipelineQuantizationConfig:
    """How `DiffusionPipeline.from_pretrained` rounds a transformer and the text encoders that are no CLIP.

    Args:
        kind: "8bit" or "4bit".
        parts: the pipeline's `model_index.json`: name -> (library, class).
        dtype: in which 4-bit weights are multiplied.
        texts: round text encoders, too.

    Raises:
        UserError: bitsandbytes is not installed, or there is no GPU, which rounds them.
    """
    need("bitsandbytes", f"backbone.quantize={kind}", "8bit")
    if not torch.accelerator.is_available():
        raise UserError(f"backbone.quantize={kind} given without a GPU, on which the weights are rounded: leave it out")
    given = SETTINGS[kind](dtype)
    mapping = {"transformer": diffusers.BitsAndBytesConfig(**given)}
    for name, part in parts.items():
        if texts and name.startswith("text_encoder") and part[0] == "transformers" and "CLIP" not in part[1]:
            mapping[name] = transformers.BitsAndBytesConfig(**given)
    return PipelineQuantizationConfig(quant_mapping=mapping)
