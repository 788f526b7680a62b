"""Readings and scores of many pictures of scene requests."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from escdiff.evaluation.bench.scenes.faces import identify_faces, portraits
from escdiff.evaluation.bench.scenes.readings import judge, read
from escdiff.evaluation.bench.scenes.requests import SceneRequest
from escdiff.mini.scene_oracle import SceneOracle


def known_faces(oracle: SceneOracle, requests: Sequence[SceneRequest]) -> dict[int, Tensor]:
    """Number of a request for a face -> `faces.portraits` of it."""
    rows = [i for i, request in enumerate(requests) if request.kind == "identity"]
    galleries = portraits(oracle, [requests[i].expected.things[0].shape.params for i in rows])
    return dict(zip(rows, galleries, strict=True))


def judged(
    oracle: SceneOracle, requests: Sequence[SceneRequest], pixels: Tensor, galleries: Mapping[int, Tensor]
) -> tuple[list[dict], list[dict[str, float]]]:
    """Readings and scores of pictures (B, 3, H, W) in [-1, 1].

    Args:
        galleries: of `known_faces`.
    """
    readings = read(oracle, pixels)
    values = [judge(request, reading) for request, reading in zip(requests, readings, strict=True)]
    same = identify_faces(oracle, list(galleries.values()), pixels[list(galleries)])
    for i, right in zip(galleries, same, strict=True):
        values[i] |= {"face_id": right, "all": right * values[i]["expression"]}
    return readings, values
