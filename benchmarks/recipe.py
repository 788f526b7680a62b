"""Hours, memory and cost of the presets for real GPUs, computed from what they say; `sizes.py` writes the tables.

    python benchmarks/recipe.py            prints them
    python benchmarks/recipe.py --count    counts the U-Nets' operations and activations again

Nothing of this is measured. Counted are multiplications and additions of matrix products, convolutions and attention,
two per multiply-add, and the bytes that the backward pass keeps, on tensors without data.
"""

import argparse
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from escdiff.backbone.identify import ARCHITECTURES
from escdiff.support.config.compose import compose
from escdiff.support.config.train import TrainConfig

RATE = 0.4  # of a card's peak, see docs/training.md
PYTORCH = 1.5  # GB that are left for CUDA, PyTorch and its allocator's gaps
REFERENCES = 2  # a shape's and an appearance's


@dataclass(frozen=True)
class Model:
    """Counted once. Operations in GFLOP, memory in GB of bfloat16.

    Attributes:
        forward, backward: of the U-Net, per noised copy; backward to its text alone.
        kept, checkpointed: activations per noised copy; block: of the largest part that is checkpointed as one.
        text: operations of all rows of a target, forward and backward; prompts: their activations, if they are kept.
        tower: operations per reference; vae: operations per target, encoding: memory of it.
        weights: of all frozen parts; trained: weights, gradients, average and moments in float32.
    """

    forward: float
    backward: float
    kept: float
    checkpointed: float
    block: float
    text: float
    prompts: float
    tower: float
    vae: float
    encoding: float
    weights: float
    trained: float


# SDXL's prompts and trained part are estimates: scaled from those of SD 1.5 by rows, width and depth; 1 GB.
MODELS = {
    "sd15": Model(803, 866, 0.736, 0.149, 0.055, 429, 0.42, 162, 1117, 0.2, 2.75, 0.47),
    "sdxl": Model(6761, 7263, 5.127, 0.488, 0.126, 2459, 1.6, 335, 4879, 0.8, 8.2, 1.0),
}
CARDS = {  # peak for bfloat16 matrices, TFLOP/s; GB; what an hour is taken to cost, in US dollars
    "RTX 4090": (165, 24, 0.4),
    "H100": (790, 80, 2.5),
}
PRESETS = {"sd15/encoder_24gb": ("RTX 4090", 1), "sd15/encoder_8x80gb": ("H100", 8), "sdxl/encoder_80gb": ("H100", 1)}


def work(model: Model, config: TrainConfig) -> float:
    """GFLOP per target, as a preset's configuration trains."""
    draws, again = config.loss.draws, config.backbone.gradient_checkpointing
    unet = model.forward * (2 if again else 1) + model.backward
    return draws * unet + model.text + REFERENCES * model.tower + (model.vae if config.data.buckets else 0)


def memory(model: Model, config: TrainConfig) -> float:
    """GB of each GPU."""
    draws, batch, again = (
        config.loss.draws,
        config.data.batch_size,
        config.backbone.gradient_checkpointing,
    )
    copy, block = (model.checkpointed, model.block) if again else (model.kept, 0.0)
    encoding = model.encoding if config.data.buckets else 0.0
    return model.weights + model.trained + PYTORCH + batch * (draws * (copy + block) + model.prompts + encoding)


def table() -> str:
    """The presets, one a row."""
    head = ("preset", "cards", "GB of each", "samples", "exaFLOP", "hours", "at half the rate", "cost of these, USD")
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    for preset, (card, count) in PRESETS.items():
        config, model = compose("train", [f"experiment={preset}"]), MODELS[preset.split("/")[0]]
        peak, _, price = CARDS[card]
        samples = config.trainer.max_steps * config.data.batch_size * count
        total = samples * work(model, config) * 1e9
        hours = total / (count * peak * 1e12 * RATE) / 3600
        low, high = (hours * count * price * slower for slower in (1, 2))
        cells = (
            f"`{preset}`", f"{count} × {card}", f"{memory(model, config):.0f}", f"{samples / 1e6:.2f} M",
            f"{total / 1e18:.1f}", f"{hours:.0f}", f"{2 * hours:.0f}", f"{low:.0f} to {high:.0f}",
        )  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    rates = ", ".join(f"{card} {peak} TFLOP/s and {price:g} USD an hour" for card, (peak, _, price) in CARDS.items())
    return "\n".join([*lines, "", f"Taken for granted: {rates}; {100 * RATE:.0f} % of the peak, or half of that."])


class _Attention(torch.autograd.Function):
    """Keeps what a fused kernel keeps, and computes nothing."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out)
        return out


def count(name: str, size: int, width: int) -> dict[str, float]:
    """`forward`, `backward`, `kept` and `checkpointed` of a U-Net at so many pixels with text of a width."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(
            UNet2DConditionModel.load_config(ARCHITECTURES / name, subfolder="unet")
        )
        nn.Module.to(unet, torch.bfloat16).requires_grad_(False)
        latents = torch.empty(1, 4, size // 8, size // 8, dtype=torch.bfloat16)
        text = torch.empty(1, 77, width, dtype=torch.bfloat16, requires_grad=True)
        added = {"text_embeds": torch.empty(1, 1280, dtype=torch.bfloat16), "time_ids": torch.empty(1, 6)}
        call = lambda: unet(latents, torch.zeros(1), text, added_cond_kwargs=added).sample  # noqa: E731
        with FlopCounterMode(display=False) as counter:
            out = call()
        forward = counter.get_total_flops()
        with FlopCounterMode(display=False) as counter:
            out.sum().backward()
        counts = {"forward": forward / 1e9, "backward": counter.get_total_flops() / 1e9, "kept": _kept(unet, call)}
        unet.train().enable_gradient_checkpointing()
        return counts | {"checkpointed": _kept(unet, call)}


def _kept(unet: nn.Module, call) -> float:
    """GB that a backward pass keeps beside the weights; each storage once."""
    weights = {StorageWeakRef(parameter.untyped_storage()) for parameter in unet.parameters()}
    seen: dict[StorageWeakRef, torch.UntypedStorage] = {}
    fused = F.scaled_dot_product_attention

    def pack(tensor: Tensor) -> Tensor:
        seen[StorageWeakRef(tensor.untyped_storage())] = tensor.untyped_storage()
        return tensor

    F.scaled_dot_product_attention = lambda query, key, value, *_, **__: _Attention.apply(query, key, value)
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            call()
        return sum(storage.nbytes() for place, storage in seen.items() if place not in weights) / 1e9
    finally:
        F.scaled_dot_product_attention = fused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", action="store_true")
    if parser.parse_args().count:
        for name, size, width in (("sd15", 512, 768), ("sdxl", 1024, 2048)):
            print(name, {key: round(value, 3) for key, value in count(name, size, width).items()}, flush=True)
    else:
        print(table())


if __name__ == "__main__":
    main()
