"""ReVersion (Huang et al. 2023, arXiv 2303.13495): one word for the relation that several pictures share.

Space: P, 1 x 1; `<relation>` stands between the things that each picture's text names: "a cat <relation> a stone". The
word is steered towards words of relations and away from the things' own, and high noise, which decides the layout, is
drawn more often. Paper: SD 1.5, 4 to 10 pictures, 3,000 steps at 2e-3, initial word "and", steering weight 0.01, no
mirroring. Ours: a word is the mean of its tokens, where the authors' code takes each for a word; the list of relation
words, and for the bundled model the few that it has learned.
"""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

from escdiff.backbone import Backbone
from escdiff.conditioning.space import TRAIN_TIMESTEPS
from escdiff.methods import losses
from escdiff.methods.base import is_mini
from escdiff.methods.ti import TI
from escdiff.support.errors import UserError

CLIP_RELATIONS = (
    "above", "across", "against", "along", "among", "around", "at", "behind", "below", "beneath", "beside", "between",
    "beyond", "by", "in", "inside", "near", "off", "on", "onto", "outside", "over", "past", "through", "toward",
    "under", "underneath", "upon", "with", "within",
)  # fmt: skip
MINI_RELATIONS = ("on", "under", "left", "right", "front", "behind", "inside", "next", "with")
FILLERS = {"a", "an", "the", "of", "to", "and", "is", "are", "photo", "picture", "render"}
POSITIVES = 4  # words drawn for a step


class ReVersion(TI):
    """TI of a relation.

    Args:
        steer: weight of the steering contrast. temperature: of it.
        relations: words to steer to; "clip", "mini" or "auto" (by the backbone) for the lists of this file.
        high_noise: a in the density 1 - a cos(pi t / T) of timesteps; 0 draws them as `loss.high_noise_bias` says.

    Raises:
        UserError: no relations, or another word for them.
    """

    attribute = "relation"
    many = 10
    needs = ("texts",)

    def __init__(
        self, backbone: Backbone, init: str = "and", vectors: int = 1, keep_norm: bool = True, steer: float = 0.01,
        temperature: float = 0.07, relations: str | Sequence[str] = "auto",
        high_noise: float = 0.5,
    ) -> None:  # fmt: skip
        super().__init__(backbone, init, vectors, keep_norm=keep_norm)
        self.steer, self.temperature, self.high_noise = steer, temperature, high_noise
        self.register_buffer("relations", self.meanings(_relations(relations, backbone)), persistent=False)  # (R, D)

    def meanings(self, words: Sequence[str]) -> Tensor:
        """(N, D): the embeddings of words."""
        found = [self.backbone.prompts.word_embedding(word, 1).to(self.table) for word in words]
        return torch.cat([self.table.new_zeros(0, self.table.shape[-1]), *found])

    def timestep_density(self, bias: float) -> float | Tensor:
        if not self.high_noise:
            return bias
        return 1 - self.high_noise * torch.cos(torch.pi * torch.arange(TRAIN_TIMESTEPS) / TRAIN_TIMESTEPS)

    def losses(self, output, target, vectors, batch) -> dict[str, Tensor]:
        terms = super().losses(output, target, vectors, batch)
        if self.steer:
            things = dict.fromkeys(word for text in batch["texts"] for word in content(text))
            chosen = torch.randperm(len(self.relations))[:POSITIVES].to(self.relations.device)
            word = vectors[self.attribute].flatten(0, 3)
            steering = losses.steering(word, self.relations[chosen], self.meanings(things), self.temperature)
            terms["steering"] = self.steer * steering
        return terms


def _relations(given: str | Sequence[str], backbone: Backbone) -> Sequence[str]:
    if given == "auto":
        given = "mini" if is_mini(backbone) else "clip"
    found = {"clip": CLIP_RELATIONS, "mini": MINI_RELATIONS}.get(given) if isinstance(given, str) else given
    if not found:
        raise UserError(f"method.relations={given!r} given; expected auto, clip, mini or a list of words")
    return found


def content(text: str) -> list[str]:
    """The words of a text that name things: no placeholder, article or relation."""
    words = re.findall(r"[^\W\d_]+", re.sub(r"<[^>]*>", " ", text.lower()))
    return [word for word in words if word not in (*FILLERS, *CLIP_RELATIONS, *MINI_RELATIONS)]
