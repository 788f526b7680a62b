"""The layers that carry the shape and those that carry the appearance: the experiment behind P+ on a U-Net.

Voynov et al. 2023, "P+: Extended Textual Conditioning in Text-to-Image Generation", sections 3.1 and 5.1. `lent_layers`
takes any backbone.

Two descriptions, such as "a red cube" and "a blue bowl", are split over the layers: the second goes to n layers
nearest to the middle of the U-Net, the first to all others. What the picture shows, as n grows, tells where each
attribute is decided. Beside it, how the cross-attention of each layer divides between the two words.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn

from escdiff.concept import ATTRIBUTES
from escdiff.conditioning import ConditioningSpace, PromptEncoder
from escdiff.conditioning.attention import probabilities, read_attention
from escdiff.evaluation.bench.instances import stream
from escdiff.evaluation.bench.models import Models
from escdiff.evaluation.metrics.features import Clip
from escdiff.evaluation.report import units
from escdiff.mini.world import world
from escdiff.pipelines.generate import generate
from escdiff.support.progress import sample_progress

PROMPT = "a photo of a <color> <family> on a white background"
ZERO_SHOT = {"family": "a photo of a {}", "color": "a photo of a {} object"}  # what CLIP compares pictures with
STREAM = 50


@dataclass
class Split:
    """Shares of pictures, with intervals, by how many of the middle layers were given the second description.

    Attributes:
        order: layers in the order in which they are given the second description.
        inner: number of layers with the second description, growing.
        shown: "family" and "color" -> metrics (mean, low, high, n) of showing the second's, one per `inner`; empty
            where our own judge cannot read the pictures.
        nearer: likewise, of being nearer to the second's word than to the first's for CLIP; empty without one.
        attention: (L,) share of the family word in the attention to both words; empty where it is not read.
    """

    order: list[int]
    inner: list[int]
    shown: dict[str, list[dict]]
    nearer: dict[str, list[dict]]
    attention: list[float]


def layer_order(space: ConditioningSpace) -> list[int]:
    """Cells by their distance from a U-Net's middle block, or a transformer's as they are executed."""
    central = (i for i, names in enumerate(space.cells) if any(name.startswith("mid_block") for name in names))
    middle = next(central, 0)
    return sorted(range(space.num_layers), key=lambda cell: (abs(cell - middle), cell))


def numbers(space: ConditioningSpace) -> list[int]:
    """How many layers get the second description: none to all, every second one, or some sixteen steps."""
    step = max(2, -(-space.num_layers // 16))
    return sorted({*range(0, space.num_layers, step), space.num_layers})


def split_prompts(models: Models, count: int, seed: int) -> Split:
    """Run the experiment with `count` pairs of descriptions per number of layers."""
    prompts, space = models.backbone.prompts, models.backbone.p_plus()
    rng, order = stream(seed, STREAM), layer_order(space)
    words = {"<color>": _single(prompts, world.COLORS), "<family>": _single(prompts, world.FAMILIES)}
    pairs = {
        name: [rng.choice(choices, 2, replace=False).tolist() for _ in range(count)] for name, choices in words.items()
    }
    seeds = rng.integers(1 << 31, size=count).tolist()
    inner = numbers(space)
    shown: dict[str, list[dict]] = {name: [] for name in ZERO_SHOT}
    nearer: dict[str, list[dict]] = {name: [] for name in ZERO_SHOT if models.clip}
    slots = dict(prompts.tokenize(PROMPT, dict.fromkeys(words, 1)).slots)
    share = AttentionShare(models.backbone.unet, space, slots["<family>"], slots["<color>"])
    with sample_progress("layers", count * len(inner)) as advance:
        for number in inner:
            second = torch.zeros(space.num_layers, dtype=torch.long)
            second[order[:number]] = 1
            vectors = {name: _vectors(prompts, pair)[:, second, None, None] for name, pair in pairs.items()}
            with share.watching() if number == 0 else nullcontext():
                pictures = generate(
                    models.backbone, [PROMPT] * count, vectors, space, models.steps, models.guidance, seeds,
                    batch_size=models.batch_size,
                )  # fmt: skip
            readings = models.read(pictures)
            for name, summaries in shown.items():
                seconds = [pair[1] for pair in pairs[f"<{name}>"]]
                values = [float(reading[name] == word) for reading, word in zip(readings, seconds, strict=True)]
                summaries.append(units.summarise(name, values))
            for name, summaries in nearer.items():
                summaries.append(units.summarise(name, prefers_second(models.clip, pictures, name, pairs[f"<{name}>"])))
            advance(count)
    return Split(order, inner, shown, nearer, share.result())


def prefers_second(clip: Clip, pictures: Sequence[Image], name: str, pairs: Sequence[Sequence[str]]) -> list[float]:
    """Per picture, 1 if CLIP finds it nearer to the second word of its pair than to the first."""
    seen = clip.pictures(pictures)
    texts = (clip.texts([ZERO_SHOT[name].format(pair[i]) for pair in pairs]) for i in (0, 1))
    first, second = (torch.cosine_similarity(seen, text, dim=-1) for text in texts)
    return (second > first).float().tolist()


class AttentionShare:
    """Measures how each layer's cross-attention divides between two positions of the prompt.

    Reads the queries and keys of every layer while pictures are painted with guidance, of the guided half.
    """

    def __init__(self, unet: nn.Module, space: ConditioningSpace, first: int, second: int) -> None:
        self.unet, self.space, self.positions = unet, space, [first, second]
        self.seen: list[list[Tensor]] = [[] for _ in space.cells]  # (2,) per call of the layer

    @contextmanager
    def watching(self) -> Iterator[None]:
        cells = {name: cell for cell, names in enumerate(self.space.cells) for name in names}

        def read(name: str, query: Tensor, key: Tensor) -> None:
            guided = (x.chunk(2)[1] for x in (query, key))
            attention = probabilities(self.unet.get_submodule(name), *guided)
            self.seen[cells[name]].append(attention[..., self.positions].mean((0, 1, 2)).float().cpu())

        with read_attention(self.unet, list(cells), read):
            yield

    def result(self) -> list[float]:
        """Share of the first position in the attention to both, per layer cell."""
        mean = torch.stack([torch.stack(layer).mean(0) for layer in self.seen])
        return (mean[:, 0] / mean.sum(1)).tolist()


def draw_figure(split: Split, gates: dict[str, Tensor] | None, names: Sequence[str], path: Path) -> None:
    """Three panels: what the picture shows, the attention's share, and the encoder's gates."""
    from matplotlib.figure import Figure

    figure = Figure((11, 3.4), layout="constrained", dpi=110)
    left, middle, right = figure.subplots(1, 3)
    for name, color in (("family", "tab:blue"), ("color", "tab:orange")):
        curves = {f"{name} of the second": split.shown, f"{name}: nearer to it for CLIP": split.nearer}
        for (label, summaries), style in zip(curves.items(), ("o-", ":"), strict=True):
            if name in summaries:
                mean, low, high = (100 * np.array([m[key] for m in summaries[name]]) for key in ("mean", "low", "high"))
                left.plot(split.inner, mean, style, color=color, label=label, markersize=4)
                if summaries is split.shown or not split.shown:
                    left.fill_between(split.inner, low, high, color=color, alpha=0.15, linewidth=0)
    order = "middle" if split.order[0] else "first ones"
    left.set(xlabel=f"layers with the second description, {order} first", ylabel="% of pictures", ylim=(-3, 103))
    left.legend(frameon=False, fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    layers = range(len(split.order))
    if split.attention:
        middle.bar(layers, [100 * share for share in split.attention], color="tab:blue")
        middle.axhline(50, color="0.5", linewidth=1)
    else:
        middle.text(0.5, 0.5, "not read", ha="center", transform=middle.transAxes)
    middle.set(xlabel="layer, in execution order", ylabel="% of attention on the family word", ylim=(0, 100))
    for attribute, color in zip(ATTRIBUTES, ("tab:blue", "tab:orange"), strict=True):
        if gates:
            right.plot(layers, gates[attribute].mean(-1).tolist(), "o-", color=color, label=attribute, markersize=4)
    right.set(xlabel="layer, in execution order", ylabel="learned gate", ylim=(0, 1.05))
    if gates:
        right.legend(frameon=False)
    else:
        right.text(0.5, 0.5, "no encoder", ha="center", transform=right.transAxes)
    for axes in (middle, right):
        axes.set_xticks(list(layers), [_short(name) for name in names], rotation=90, fontsize=7)
    figure.savefig(path)


def _short(name: str) -> str:
    """ "down_blocks.1.attentions.0...." -> "down 1.0"."""
    parts = name.split(".")
    numbers = [part for part in parts[1:4] if part.isdigit()]
    return f"{parts[0].removesuffix('_blocks').removesuffix('_block')} {'.'.join(numbers)}"


def _single(prompts: PromptEncoder, words: Sequence[str]) -> list[str]:
    """The words that are one token: only those can be exchanged in place."""
    return [word for word in words if len(prompts.word_embedding(word)) == 1]


def _vectors(prompts: PromptEncoder, pairs: Sequence[Sequence[str]]) -> Tensor:
    """(B, 2, D)."""
    return torch.stack([torch.cat([prompts.word_embedding(word) for word in pair]) for pair in pairs])
