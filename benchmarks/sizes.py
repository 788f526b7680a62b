"""The tables of sizes in docs/, from the real configurations of the encoders; no weights are needed.

    python benchmarks/sizes.py [--check]

Counts what `train.py backbone=sd15` builds, on tensors without data, and writes the tables between their marks
(`<!-- sizes.py: NAME -->`). With `--check` it writes nothing and ends with 1 where a page is not as counted.
"""

import argparse
import math
import re
from dataclasses import dataclass
from pathlib import Path

import recipe
import torch
from real_sizes import shapes
from torch import nn

from escdiff.backbone import Backbone
from escdiff.conditioning import ConditioningSpace
from escdiff.encoder.encoder import ConceptEncoder
from escdiff.encoder.vision import TransformersVision
from escdiff.mini import parts as mini
from escdiff.support.config.compose import compose
from escdiff.support.config.loss import LossConfig
from escdiff.training.encoder.module import EncoderModule

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("scaling.md", "training.md", "train_sd15.md")
MARKED = re.compile(r"(<!-- sizes\.py: (\w+) -->\n).*?(<!-- sizes\.py: end -->)", re.DOTALL)
GPUS, BATCH = 64, 64  # of the table of many GPUs; the batch of each
RATE = 137  # samples/s of a GPU, see docs/scaling.md
LINKS = {"25 GB/s (one 200 Gbit/s link per GPU)": 25e9, "1.25 GB/s (10 Gbit/s Ethernet per GPU)": 1.25e9}
# GB of activations in bfloat16 at 512 pixels: per noised copy, the same with checkpointing, per target with 16 prompts.
COPY, CHECKPOINTED, PROMPTS = 0.74, 0.15, 0.42
PYTORCH = 1.5  # GB that are left for CUDA, PyTorch and its allocator's gaps


@dataclass
class Sizes:
    """Numbers of values, and bytes.

    Attributes:
        parts: part -> parameters of what is frozen. trained: parameters.
        gradients, moments, export: bytes; the last of the encoder's file.
    """

    parts: dict[str, int]
    trained: int
    gradients: int
    moments: int
    export: int

    @property
    def checkpoint(self) -> int:
        """Weights, their average and the optimizer's moments."""
        return 2 * self.gradients + self.moments

    @property
    def held(self) -> int:
        """Bytes that a GPU holds of the trained parameters."""
        return self.checkpoint + self.gradients


def count() -> Sizes:
    config = compose("train", ["backbone=sd15"])
    parts = shapes()
    scheduler = mini.make_scheduler()
    backbone = Backbone(parts["unet"], parts["vae"], parts["text_encoder"], mini.make_tokenizer(), scheduler, "sd15")
    with torch.device("meta"):
        vision = TransformersVision(parts["vision"], "ViT-L/14")
        settings = config.encoder
        anchors = {attribute: torch.empty(1, backbone.width) for attribute in settings.tokens}
        encoder = ConceptEncoder(settings, vision, ConditioningSpace.p_plus(backbone.unet), anchors)
        module = EncoderModule(encoder, backbone, LossConfig(), lr=1e-4, max_steps=1)
        trained = [p for p in module.parameters() if p.requires_grad]
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
    optimizer = module.configure_optimizers()["optimizer"]
    optimizer.step()
    moments = [v for state in optimizer.state.values() for v in state.values() if v.ndim]
    return Sizes(
        {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()},
        sum(p.numel() for p in trained), size(trained), size(moments),
        2 * sum(v.numel() for v in encoder.state_dict().values()),
    )  # fmt: skip


def size(tensors: list[torch.Tensor] | list[nn.Parameter]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def scaling(sizes: Sizes) -> str:
    """Many GPUs: what a step takes, and what travels."""
    step, share = BATCH / RATE, 2 * (GPUS - 1) / GPUS
    wire = share * sizes.gradients
    lines = [
        "| | |", "|---|---|",
        f"| step of one GPU | {BATCH} / {RATE} = {step:.2f} s |",
        f"| trained parameters | {sizes.trained / 1e6:.2f} M, branches included |",
        f"| gradients, in float32 | {mb(sizes.gradients)} |",
        f"| on the wire per GPU and step (ring all-reduce) | 2 × {GPUS - 1}/{GPUS} × as much = {mb(wire)} |",
    ]  # fmt: skip
    for link, speed in LINKS.items():
        slower = wire / speed / step
        cost = f"{1e3 * wire / speed:.0f} ms = {100 * slower:.1f} % of a step"
        lines.append(f"| at {link} | {cost}; efficiency {100 / (1 + slower):.0f} % if nothing hides it |")
    note = f"weights, average and the optimizer's moments: {mb(sizes.checkpoint)}, by one process, in a thread"
    return "\n".join([*lines, f"| checkpoint | {note} |"])


def memory(sizes: Sizes) -> str:
    """One GPU: what it holds, and how many targets fit."""
    frozen = {"U-Net": "unet", "CLIP tower": "vision", "text encoder": "text_encoder", "VAE": "vae"}
    weights = {label: 2 * sizes.parts[part] for label, part in frozen.items()}
    fixed = (sum(weights.values()) + sizes.held) / 1e9 + PYTORCH
    rows = {
        f"weights of {', '.join(weights)}": " + ".join(f"{w / 1e9:.2f}" for w in weights.values()) + " GB",
        "the tower, if it were in float32": f"{4 * sizes.parts['vision'] / 1e9:.2f} GB",
        f"what is trained, {sizes.trained / 1e6:.2f} M in float32: weights, gradients, average, moments":
            f"{sizes.held / 1e9:.2f} GB",
        "per noised copy": f"{COPY} GB, with `backbone.gradient_checkpointing=true` {CHECKPOINTED} GB",
        "per target, 16 prompts": f"up to {PROMPTS} GB",
        "files": f"checkpoint {mb(sizes.checkpoint)}, exported encoder {mb(sizes.export)}",
    }  # fmt: skip
    lines = ["| what | SD 1.5 |", "|---|---:|", *(f"| {label} | {value} |" for label, value in rows.items())]
    lines += ["", "| GPU | targets per step at four copies | with checkpointing |", "|---|---:|---:|"]
    for card in (16, 24, 40, 80):
        fit = (math.floor((card - fixed) / (4 * copy + PROMPTS)) for copy in (COPY, CHECKPOINTED))
        lines.append(f"| {card} GB | {next(fit)} | {next(fit)} |")
    rule = f"(memory − {fixed:.2f} GB) ÷ (4 × {COPY} + {PROMPTS}) or ÷ (4 × {CHECKPOINTED} + {PROMPTS}), rounded down"
    text = f"Rule behind the table: {rule}; {PYTORCH} GB of those {fixed:.2f} are left for PyTorch."
    return "\n".join([*lines, "", text])


def mb(count: float) -> str:
    return f"{count / 1e6:.0f} MB"


def tables() -> dict[str, str]:
    """Name of a mark -> what stands there."""
    sizes = count()
    return {"scaling": scaling(sizes), "memory": memory(sizes), "recipe": recipe.table()}


def filled(text: str, tables: dict[str, str]) -> str:
    """A page with its tables as they are now."""
    return MARKED.sub(lambda match: f"{match[1]}{tables[match[2]]}\n{match[3]}", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    rows, stale = tables(), []
    for page in (DOCS / name for name in PAGES):
        text = page.read_text(encoding="utf-8")
        new = filled(text, rows)
        if new != text:
            stale.append(page.name)
            if not args.check:
                page.write_text(new, encoding="utf-8")
    print(f"{'not as counted' if args.check else 'written'}: {', '.join(stale) or 'none'}")
    raise SystemExit(int(args.check and bool(stale)))


if __name__ == "__main__":
    main()
