"""What an encoder reads off a picture, with nothing painted: which of eight namesakes it shows.

Each reference is looked for among one other picture of each member of its line-up (`bench.identity`), by

- features: what the attribute's filter lets through, by their cosine;
- vectors: what is added to the anchor words behind the gates, likewise;
- words: the distance of the vectors before the gates from what words say of each member (`mini.world.mixtures`);
- leak: the vectors of the other attribute, which should tell nothing. Chance is 1 in 8.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from escdiff.concept import ATTRIBUTES
from escdiff.conditioning import PromptEncoder
from escdiff.encoder import ConceptEncoder
from escdiff.evaluation.bench.identity import OTHERS, lineup, recognised, views
from escdiff.evaluation.bench.instances import draw_instance, stream
from escdiff.evaluation.bench.pictures import draw, pixels_of
from escdiff.evaluation.report import units
from escdiff.mini.data.lineups import tellable
from escdiff.mini.world.mixtures import material_mixture, shape_mixture
from escdiff.support.progress import sample_progress
from escdiff.training.encoder.word_targets import WordTargets

STREAM, BATCH = 60, 32
OTHER = dict(zip(ATTRIBUTES, reversed(ATTRIBUTES), strict=True))
KINDS = {"shape": "shape", "appearance": "material"}  # attribute -> the instances that it tells apart
MIXTURES = {"shape": shape_mixture, "material": material_mixture}
STAGES = ("features", "vectors", "words", "leak")
COLUMNS = tuple(f"{kind}/{stage}" for kind in KINDS.values() for stage in STAGES)
BY_READING = (
    COLUMNS,
    "Nothing is painted: shares in percent of references told from 7 namesakes (chance 12.5) by what the filters let "
    "through (features), by the vectors that the head makes of it (vectors), by what words say of each (words), and by "
    "the vectors of the other attribute (leak)",
)


class Reading:
    """The same questions to every encoder; what a tower sees of their pictures is kept for the next one of it."""

    def __init__(self, prompts: PromptEncoder, count: int = 200, seed: int = 0) -> None:
        """Draw `count` references.

        Args:
            prompts: of the backbone whose words the encoders speak.
        """
        rng = stream(seed, STREAM)
        self.targets, self.references = WordTargets(prompts), [draw_instance(rng) for _ in range(count)]
        self.lineups = {
            kind: [lineup(getattr(reference, kind), seed) for reference in self.references] for kind in MIXTURES
        }
        self.pictures = {"reference": self.references} | {
            kind: [views(member, rng, 1)[0] for members in lineups for member in members]
            for kind, lineups in self.lineups.items()
        }
        self._seen: dict[tuple[str, bool], dict[str, list[Tensor]]] = {}

    @torch.no_grad()
    def __call__(self, encoder: ConceptEncoder) -> dict[str, dict[str, float | int]]:
        """`COLUMNS` -> mean, low, high and n, over the references whose instance can be told from its namesakes."""
        scores = {}
        for attribute, kind in KINDS.items():
            told = [i for i, reference in enumerate(self.references) if tellable(getattr(reference, kind))]
            seen = [self._tokens(encoder, name) for name in ("reference", kind)]
            features = [_features(encoder, attribute, tokens) for tokens in seen]
            leaking = [_features(encoder, OTHER[attribute], tokens) for tokens in seen]
            hits = {
                "features": nearest(*features),
                "vectors": nearest(*(_said(encoder, attribute, own) for own in features)),
                "words": self._by_words(encoder, attribute, kind, features[0]),
                "leak": nearest(*(_said(encoder, OTHER[attribute], own) for own in leaking)),
            }
            for stage, hit in hits.items():
                name = f"{kind}/{stage}"
                scores[name] = units.summarise(name, [hit[i] for i in told])
        return scores

    def _by_words(self, encoder: ConceptEncoder, attribute: str, kind: str, features: Tensor) -> list[float]:
        """1.0 where the vectors of a reference are nearer to the words of its own instance than to any namesake's."""
        vectors, hits = (encoder.anchor(attribute) + encoder.residuals(attribute, features)).flatten(1, 2), []
        for own, members in zip(vectors, self.lineups[kind], strict=True):
            said, _ = self.targets([MIXTURES[kind](member) for member in members], vectors.shape[-2])
            near = -(said[:, None].to(own) - own).square().sum((1, 2, 3))
            hits.append(float(near[0] > near[1:].max()))
        return hits

    def _tokens(self, encoder: ConceptEncoder, name: str) -> list[Tensor]:
        """What the encoder's tower sees of the pictures of a name, by depth."""
        key = encoder.vision.spec, bool(encoder.config.words)
        seen = self._seen.setdefault(key, {})
        if name not in seen:
            parts, pictures = [], self.pictures[name]
            with sample_progress(f"looking at each {name}", len(pictures)) as advance:
                for first in range(0, len(pictures), BATCH):
                    pixels = pixels_of(draw(pictures[first : first + BATCH]), encoder.vision.image_size)
                    parts.append(encoder.tokens(pixels.to(encoder.embedding_scale)))
                    advance(len(pixels))
            seen[name] = [torch.cat(depth).half() for depth in zip(*parts, strict=True)]
        return seen[name]


def _features(encoder: ConceptEncoder, attribute: str, tokens: Sequence[Tensor]) -> Tensor:
    """(B, F), a few pictures at a time."""
    parts = zip(*(depth.split(8 * BATCH) for depth in tokens), strict=True)
    return torch.cat([encoder.features(attribute, list(part)) for part in parts])


def _said(encoder: ConceptEncoder, attribute: str, features: Tensor) -> Tensor:
    """Features (B, F) -> what the vectors add to the anchor, behind the gates, (B, L * S * K * D)."""
    vectors = encoder.vectors(attribute, encoder.residuals(attribute, features))
    return (vectors - encoder.anchor(attribute)).flatten(1)


def nearest(asked: Tensor, among: Tensor) -> list[float]:
    """1.0 where a row (B, D) has a larger cosine with the first of its line-up (B * 8, D) than with any other."""
    lineups = normalize(among, dim=-1).split(1 + OTHERS)
    return [float(recognised(*pair)) for pair in zip(normalize(asked, dim=-1), lineups, strict=True)]
