"""Re-identification of a face among eight.

A face is its twelve parameters. Each of the line-up is shown to the scene oracle in `VIEWS` renders that differ in
expression, hair, light and background. Chance is 1 in 8.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from escdiff.evaluation.bench.identity import OTHERS, mean_vectors, recognised
from escdiff.evaluation.bench.instances import STREAM
from escdiff.evaluation.bench.pictures import draw, pixels_of
from escdiff.mini.data.sheets import face_of
from escdiff.mini.scene_oracle import SceneOracle
from escdiff.mini.world.arrangement import Arrangement
from escdiff.mini.world.geometry.faces import IDENTITY

VIEWS, AT_ONCE = 2, 4


def lineup(face: tuple[float, ...], seed: int = 0) -> list[Arrangement]:
    """`VIEWS` pictures of the face and of each of seven others, its own first; the same ones whenever asked for."""
    rng = np.random.default_rng((seed, STREAM + 502, *(int(1e5 * value) for value in face)))
    strangers = [tuple(rng.random(len(IDENTITY)).round(5).tolist()) for _ in range(OTHERS)]
    return [face_of(params, rng) for params in (face, *strangers) for _ in range(VIEWS)]


def portraits(judge: SceneOracle, faces: Sequence[tuple[float, ...]], seed: int = 0) -> list[Tensor]:
    """Mean vectors (1 + OTHERS, D), of length 1, of each face's line-up; its own comes first."""
    vectors: list[Tensor] = []
    for first in range(0, len(faces), AT_ONCE):
        shown = draw([view for face in faces[first : first + AT_ONCE] for view in lineup(face, seed)])
        vectors += mean_vectors(judge, "face_id", pixels_of(shown), VIEWS).split(1 + OTHERS)
    return vectors


def identify_faces(judge: SceneOracle, galleries: Sequence[Tensor], pixels: Tensor) -> list[float]:
    """Per picture (B, 3, H, W) 1.0 where the face whose `portraits` are known is re-identified, else 0.0."""
    parts = pixels.split(32) if galleries else ()
    vectors = [vector for part in parts for vector in judge.embed("face_id", part)]
    return [float(recognised(vector, gallery)) for vector, gallery in zip(vectors, galleries, strict=True)]
