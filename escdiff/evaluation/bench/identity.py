"""Re-identification of an instance among eight of the same names.

A line-up is the instance and `OTHERS` namesakes: shapes of its family, or materials of its pattern, colours and finish.
Each is shown to the oracle in `VIEWS` renders that share nothing else with the picture. The instance is re-identified
if the picture's vector is nearest to the mean of its own. Chance is 1 in 8.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from escdiff.evaluation.bench.instances import PURPOSE, STREAM, Request
from escdiff.evaluation.bench.pictures import draw, pixels_of
from escdiff.mini.data.lineups import draw_material, draw_shape, namesakes, tellable
from escdiff.mini.judge import Judge
from escdiff.mini.oracle import Oracle
from escdiff.mini.world import world
from escdiff.mini.world.world import TEXTURED, THING, Factors, Material, Shape

OTHERS, VIEWS = 7, 3
AT_ONCE = 8  # line-ups that are rendered together, so that things of one family are
CHANCE = 1 / (1 + OTHERS)
# Score -> the instance that is looked for. A leak is what the reference was not asked for.
LOOKED_FOR: dict[str, Callable[[Request], Shape | Material]] = {
    "shape_id": lambda request: request.expected.shape,
    "material_id": lambda request: request.expected.material,
    "leak_shape_id": lambda request: request.appearance.shape,
    "leak_material_id": lambda request: request.shape.material,
}


def lineup(instance: Shape | Material, seed: int = 0) -> list[Shape] | list[Material]:
    """The instance and its namesakes; the same ones whenever it is asked for."""
    digest = hashlib.sha256(repr(instance).encode()).digest()
    rng = np.random.default_rng((seed, STREAM + 500, int.from_bytes(digest[:8], "little")))
    return [instance, *namesakes([instance], OTHERS, rng, PURPOSE)]


def views(instance: Shape | Material, rng: np.random.Generator, count: int = VIEWS) -> list[Factors]:
    """An instance `count` times, with everything else drawn anew."""
    pictures = []
    for _ in range(count):
        shape = instance if isinstance(instance, Shape) else draw_shape(rng, purpose=PURPOSE)
        material = instance if isinstance(instance, Material) else draw_material(rng, purpose=PURPOSE)
        pictures.append(Factors(shape, material, world.sample_scene(rng, material)))
    return pictures


class Gallery:
    """The line-ups that an oracle has been shown: instances come back, in the rows of words above all.

    Attributes:
        vectors: instance -> mean vectors (1 + OTHERS, D), of length 1, of its line-up; its own comes first.
    """

    def __init__(self, oracle: Oracle, seed: int = 0) -> None:
        self.oracle, self.seed = oracle, seed
        self.vectors: dict[Shape | Material, Tensor] = {}

    def portraits(self, instances: Sequence[Shape] | Sequence[Material]) -> list[Tensor]:
        """The mean vectors of each instance's line-up; what is new is rendered, several line-ups at once."""
        new = [instance for instance in dict.fromkeys(instances) if instance not in self.vectors]
        for first in range(0, len(new), AT_ONCE):
            part = new[first : first + AT_ONCE]
            shown = [view for instance in part for view in self._lineup_views(instance)]
            name = "shape_id" if isinstance(part[0], Shape) else "material_id"
            vectors = mean_vectors(self.oracle, name, pixels_of(draw(shown)), VIEWS)
            self.vectors |= dict(zip(part, vectors.split(1 + OTHERS), strict=True))
        return [self.vectors[instance] for instance in instances]

    def _lineup_views(self, instance: Shape | Material) -> list[Factors]:
        rng = np.random.default_rng((self.seed, STREAM + 501))
        return [view for member in lineup(instance, self.seed) for view in views(member, rng)]


def mean_vectors(judge: Judge, name: str, pixels: Tensor, views: int) -> Tensor:
    """Mean vectors (N, D), of length 1, of a head of the judge over each `views` of the pixels (N * views, 3, H, W)."""
    vectors = torch.cat([judge.embed(name, part) for part in pixels.split(48)])
    return torch.nn.functional.normalize(vectors.unflatten(0, (-1, views)).mean(1), dim=-1)


def recognised(vector: Tensor, portraits: Tensor) -> bool:
    """Whether a vector (D,) is nearer to the first portrait than to any other; a tie is no recognition."""
    near = portraits @ vector
    return bool(near[0] > near[1:].max())


def identify(
    gallery: Gallery,
    names: Sequence[str],
    requests: Sequence[Request],
    pictures: Sequence[Image.Image],
    nameless: bool = False,
) -> list[dict[str, float]]:
    """Per picture, score -> 1.0 where the instance of `LOOKED_FOR` is re-identified, else 0.0.

    No score where no namesake could look any different, see `tellable`.

    Args:
        names: of `LOOKED_FOR`; none are judged by an oracle that tells no instances apart.
        nameless: look for things and textures only.
    """
    if not names or not requests or not gallery.oracle.config.embeddings:
        return [{} for _ in requests]
    parts = pixels_of(pictures).split(32)
    scores: list[dict[str, float]] = [{} for _ in requests]
    for name in names:
        vectors = torch.cat([gallery.oracle.embed(name.removeprefix("leak_"), part) for part in parts])
        looked_for = enumerate(LOOKED_FOR[name](request) for request in requests)
        instances = {i: one for i, one in looked_for if tellable(one) and (is_nameless(one) or not nameless)}
        for i, portraits in zip(instances, gallery.portraits(list(instances.values())), strict=True):
            scores[i][name] = float(recognised(vectors[i], portraits))
    return scores


def is_nameless(instance: Shape | Material) -> bool:
    """Whether no caption can say which instance it is: of a thing, of a texture."""
    return instance.family == THING if isinstance(instance, Shape) else instance.pattern == TEXTURED
