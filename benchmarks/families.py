"""Real sizes of every family, computed without weights: parameters, layers, widths, floating-point operations.

    python benchmarks/families.py [NAME ...]

Models are built from their published configurations on torch's meta device, which holds shapes only. Operations are
those of matrix products and convolutions for one picture (2 for a multiplication and an addition), counted by
torch.utils.flop_counter: of a forward pass, and of a training step, whose backward pass goes through the frozen model
to the vectors of its layers. Nothing here is a time; samples a second are those of a GPU that reaches a given share of
what its makers promise.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from escdiff.backbone.family import family_of

H100, SHARE = 989e12, 0.45  # dense bfloat16 operations a second of an H100 SXM, by its data sheet; what is reached
ARCHITECTURES = Path(__file__).parents[1] / "escdiff" / "assets" / "architectures"


def unet(name: str) -> dict:
    """A U-Net's bundled configuration."""
    return json.loads((ARCHITECTURES / name / "unet" / "config.json").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Real:
    """One published model.

    Attributes:
        kind: class of diffusers.
        config: what differs from the class's defaults.
        pixels: side of its pictures.
        tokens: of its pipeline's prompts at their longest.
        inputs: what it is called with besides text.
    """

    kind: str
    config: dict
    pixels: int
    tokens: int
    inputs: Callable[[int], dict]

    def build(self) -> nn.Module:
        """The model, without weights."""
        with torch.device("meta"):
            return getattr(diffusers, self.kind).from_config(self.config).eval()


def picture(channels: int, side: int, **more) -> Callable[[int], dict]:
    return lambda tokens: {"hidden_states": torch.empty(1, channels, side, side), "timestep": torch.empty(1)} | more


def patches(**more) -> Callable[[int], dict]:
    return lambda tokens: {"hidden_states": torch.empty(1, 4096, 64), "timestep": torch.empty(1)} | more


def of_flux(tokens: int) -> dict:
    ids = {"img_ids": torch.empty(4096, 3), "txt_ids": torch.empty(tokens, 3)}
    return patches(pooled_projections=torch.empty(1, 768), guidance=torch.empty(1))(tokens) | ids


def of_unet(side: int, **more) -> Callable[[int], dict]:
    return lambda tokens: {"sample": torch.empty(1, 4, side, side), "timestep": torch.empty(1)} | more


with torch.device("meta"):
    POOLED = torch.empty(1, 2048)
    SIZES = {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)}

SIGMA = {
    "sample_size": 128, "num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4,
    "out_channels": 8, "cross_attention_dim": 1152, "caption_channels": 4096, "patch_size": 2,
    "use_additional_conditions": False,
}  # fmt: skip
SD3 = {
    "num_layers": 24, "num_attention_heads": 24, "attention_head_dim": 64, "caption_projection_dim": 1536,
    "joint_attention_dim": 4096, "pooled_projection_dim": 2048, "in_channels": 16, "out_channels": 16,
    "pos_embed_max_size": 192,
}  # fmt: skip
SD35 = {"qk_norm": "rms_norm", "dual_attention_layers": tuple(range(13)), "pos_embed_max_size": 384}
LARGE = {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm"}
FLUX = {
    "num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24, "attention_head_dim": 128,
    "joint_attention_dim": 4096, "pooled_projection_dim": 768, "in_channels": 64, "guidance_embeds": True,
}  # fmt: skip
QWEN = {
    "num_layers": 60, "num_attention_heads": 24, "attention_head_dim": 128, "joint_attention_dim": 3584,
    "in_channels": 64, "out_channels": 16,
}  # fmt: skip
SANA = {
    "num_layers": 20, "num_attention_heads": 70, "attention_head_dim": 32, "num_cross_attention_heads": 20,
    "cross_attention_head_dim": 112, "cross_attention_dim": 2240, "caption_channels": 2304, "in_channels": 32,
    "out_channels": 32, "sample_size": 32,
}  # fmt: skip

REAL = {
    "SD 1.5": Real("UNet2DConditionModel", unet("sd15"), 512, 77, of_unet(64)),
    "SDXL": Real("UNet2DConditionModel", unet("sdxl"), 1024, 77, of_unet(128, added_cond_kwargs=SIZES)),
    "PixArt-Sigma": Real("PixArtTransformer2DModel", SIGMA, 1024, 300, picture(4, 128)),
    "Sana 1.6B": Real("SanaTransformer2DModel", SANA, 1024, 300, picture(32, 32)),
    "SD 3 medium": Real("SD3Transformer2DModel", SD3, 1024, 333, picture(16, 128, pooled_projections=POOLED)),
    "SD 3.5 medium": Real("SD3Transformer2DModel", SD3 | SD35, 1024, 333, picture(16, 128, pooled_projections=POOLED)),
    "SD 3.5 large": Real("SD3Transformer2DModel", SD3 | LARGE, 1024, 333, picture(16, 128, pooled_projections=POOLED)),
    "FLUX.1-dev": Real("FluxTransformer2DModel", FLUX, 1024, 512, of_flux),
    "Qwen-Image": Real("QwenImageTransformer2DModel", QWEN, 1024, 512, patches(img_shapes=[[(1, 64, 64)]])),
}


def operations(real: Real, model: nn.Module, training: bool = False) -> int:
    """Of one forward pass, or of a training step."""
    with torch.device("meta"):
        inputs, text = real.inputs(real.tokens), torch.empty(1, real.tokens, family_of(model).text_width(model))
    model.requires_grad_(False)
    with torch.set_grad_enabled(training), FlopCounterMode(display=False) as counter:
        output = model(**inputs, encoder_hidden_states=text.requires_grad_(training)).sample
        if training:
            output.sum().backward()
    return counter.get_total_flops()


def row(name: str) -> dict[str, str]:
    """One model's line of the table."""
    real = REAL[name]
    model = real.build()
    family = family_of(model)
    layers, width = family.space(model).num_layers, family.layer_width(model)
    return {
        "model": name,
        "family": family.name,
        "parameters": f"{sum(p.numel() for p in model.parameters()) / 1e9:.2f} B",
        "layers": str(layers),
        "text width": str(family.text_width(model)),
        "layer's width": str(width),
        "one vector per layer": f"{2 * layers * width / 1000:.0f} KB",
        "picture": f"{real.pixels}",
        "tokens": str(real.tokens),
        "forward pass": f"{operations(real, model) / 1e12:.2f} TFLOP",
    }


def training_row(name: str) -> dict[str, str]:
    """What training vectors over one frozen model takes."""
    real = REAL[name]
    model = real.build()
    count, step = sum(p.numel() for p in model.parameters()), operations(real, model, training=True)
    return {
        "model": name,
        **{f"weights, {bits} bit": f"{count * bits / 8 / 1e9:.1f} GB" for bits in (16, 8, 4)},
        "training step": f"{step / 1e12:.2f} TFLOP",
        "samples/s": f"{SHARE * H100 / step:.1f}",
    }


def show(rows: list[dict[str, str]]) -> None:
    """A table in Markdown."""
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for line in rows:
        print("| " + " | ".join(line.values()) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(REAL), metavar="NAME", help=", ".join(REAL))
    names = parser.parse_args().names
    print("Computed from configurations, 16-bit vectors:\n")
    show([row(name) for name in names])
    print(f"\nTraining, at {SHARE:.0%} of an H100:\n")
    show([training_row(name) for name in names])


if __name__ == "__main__":
    main()
