"""Which layers of any backbone decide what is shown and in which colour, judged by CLIP.

The experiment of `layers`, without vectors: two descriptions are painted from the same noise, and n layers of the first
picture read the second's text (`escdiff.backbone.family.lending`). So it needs neither an encoder nor our own world.
For transformers published accounts disagree: arXiv 2511.15258 splits FLUX.1's blocks in content and style, 2601.02211
finds meaning early and detail late, 2601.06202 finds no such law.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial

import torch
from PIL.Image import Image
from torch import Tensor

from escdiff.backbone.family.lending import lend_text
from escdiff.backbone.frozen import Frozen
from escdiff.evaluation.bench.instances import stream
from escdiff.evaluation.metrics.features import Clip
from escdiff.evaluation.report import units
from escdiff.evaluation.studies.layers import PROMPT, STREAM, Split, layer_order, numbers, prefers_second
from escdiff.mini.world import world
from escdiff.pipelines.generate import generate
from escdiff.support.progress import sample_progress

WORDS = {"family": world.FAMILIES, "color": world.COLORS}


def split_texts(
    backbone: Frozen, clip: Clip, count: int, seed: int, steps: int, guidance: float, batch_size: int = 8
) -> Split:
    """Run the experiment with `count` pairs of descriptions per number of layers.

    Args:
        batch_size: pictures at once, half of which lend their text.
    """
    rng, space = stream(seed, STREAM), backbone.p_plus()
    order = layer_order(space)
    pairs = {
        name: [rng.choice(alike(backbone, words), 2, replace=False).tolist() for _ in range(count)]
        for name, words in WORDS.items()
    }
    seeds, inner = rng.integers(1 << 31, size=count).tolist(), numbers(space)
    nearer: dict[str, list[dict]] = {name: [] for name in WORDS}
    with sample_progress("layers", count * len(inner)) as advance:
        for number in inner:
            names = [name for cell in order[:number] for name in space.cells[cell]]
            pictures = _paint(backbone, pairs, names, seeds, steps, guidance, max(1, batch_size // 2))
            for name, summaries in nearer.items():
                summaries.append(units.summarise(name, prefers_second(clip, pictures, name, pairs[name])))
            advance(count)
    return Split(order, inner, {}, nearer, [])


def alike(backbone: Frozen, words: Sequence[str]) -> list[str]:
    """The words of the most frequent number of tokens, so that texts with them are equally long."""
    count = {word: len(backbone.prompts.word_embedding(word)) for word in words}
    most = Counter(count.values()).most_common(1)[0][0]
    return [word for word in words if count[word] == most]


def lenders(batch: int, count: int) -> Tensor:
    """(batch,): of runs of 2 `count` samples, as guidance stacks them, the first half reads the second half's text."""
    rows = torch.arange(batch).view(-1, 2, count)
    return rows[:, [1, 1]].flatten()


def _paint(
    backbone: Frozen, pairs: dict[str, list[list[str]]], names: Sequence[str], seeds: Sequence[int], steps: int,
    guidance: float, together: int,
) -> list[Image]:  # fmt: skip
    pictures = []
    for first in range(0, len(seeds), together):
        part = slice(first, first + together)
        part_seeds = seeds[part]
        texts = [
            PROMPT.replace("<color>", color[side]).replace("<family>", family[side])
            for side in (0, 1)
            for color, family in zip(pairs["color"][part], pairs["family"][part], strict=True)
        ]
        with lend_text(backbone.denoiser, names, partial(lenders, count=len(part_seeds))):
            painted = generate(
                backbone, texts, steps=steps, guidance=guidance, seeds=[*part_seeds, *part_seeds], batch_size=len(texts)
            )
        pictures += painted[: len(part_seeds)]
    return pictures
