"""Pictures of requests, read by the oracle and judged."""

from collections.abc import Sequence

import torch
from PIL import Image

from escdiff.data.pictures import to_pil
from escdiff.evaluation.bench import scores
from escdiff.evaluation.bench.identity import identify
from escdiff.evaluation.bench.instances import Request
from escdiff.evaluation.bench.models import Advance, Models
from escdiff.evaluation.bench.pictures import draw, pixels_of
from escdiff.evaluation.bench.records import RESULT, Record
from escdiff.evaluation.bench.tasks import PAINT, RECONSTRUCT, Task

Pictures = dict[str, Image.Image]


def make(
    models: Models, task: Task, requests: Sequence[Request], seeds: Sequence[int], advance: Advance
) -> list[tuple[Record, Pictures]]:
    """Make the pictures of a task; each comes with its record and the pictures beside it, by caption."""
    if task.make == PAINT:
        beside, results, values = _paint(models, task, requests, seeds, advance)
    elif task.make == RECONSTRUCT:
        beside, results, values = _reconstruct(models, requests, advance)
    else:
        beside, results, values = [{} for _ in requests], draw([r.expected for r in requests]), [{} for _ in requests]
        advance(len(requests))
    readings = models.read(results)
    identities: list[dict[str, float]] = [{} for _ in requests]
    identities[:: task.every] = identify(
        models.gallery, task.identities, requests[:: task.every], results[:: task.every], task.nameless
    )
    records = [
        Record(request, reading, scores.judge(task.scores, reading, request.expected) | clip_value | identity)
        for request, reading, clip_value, identity in zip(requests, readings, values, identities, strict=True)
    ]
    return [(r, other | {RESULT: result}) for r, other, result in zip(records, beside, results, strict=True)]


def _paint(models: Models, task: Task, requests: Sequence[Request], seeds: Sequence[int], advance: Advance):
    references = _references(requests)
    results = models.paint(requests, references, seeds, advance)
    beside = [_captioned(request, reference) for request, reference in zip(requests, references, strict=True)]
    if not (task.clip and models.clip):
        opinion = None
    elif task.clip == "clip_t":
        opinion = models.clip.texts([r.prompt for r in requests])
    else:
        opinion = models.clip.pictures([reference["shape"] for reference in references])
    if opinion is None:
        return beside, results, [{} for _ in requests]
    cosines = torch.cosine_similarity(models.clip.pictures(results), opinion, dim=-1)
    return beside, results, [{task.clip: value} for value in cosines.tolist()]


def _captioned(request: Request, references: Pictures) -> Pictures:
    """References by the captions that pages show; one for both attributes is shown once."""
    if request.shape == request.appearance and references:
        return {"reference": references["shape"]}
    return {f"{name} reference": picture for name, picture in references.items()}


def _reconstruct(models: Models, requests: Sequence[Request], advance: Advance):
    renders = draw([r.shown or r.expected for r in requests])
    pixels = pixels_of(renders)
    reconstructed = models.reconstruct(pixels, advance)
    values = [{"psnr": value} for value in scores.psnr(reconstructed, pixels)]
    return [{"render": picture} for picture in renders], [to_pil(p) for p in reconstructed], values


def _references(requests: Sequence[Request]) -> list[Pictures]:
    """Attribute -> rendered reference, for each request."""
    every = [factors for request in requests for factors in request.references.values()]
    pictures = iter(draw(every) if every else ())
    return [{attribute: next(pictures) for attribute in request.references} for request in requests]
