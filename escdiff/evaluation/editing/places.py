"""Task *places*: an object of a reference is put into a box of an empty scene."""

from collections.abc import Sequence
from itertools import count as numbers

import torch
from PIL import Image

from escdiff.control.boxes import Box, draw
from escdiff.control.inversion import psnr
from escdiff.data.pictures import to_pixels
from escdiff.evaluation.bench import scores
from escdiff.evaluation.bench.identity import identify
from escdiff.evaluation.bench.instances import Request
from escdiff.evaluation.bench.pictures import pixels_of
from escdiff.evaluation.bench.records import Record
from escdiff.evaluation.editing import editors
from escdiff.evaluation.editing.cases import Case
from escdiff.evaluation.editing.task import Task
from escdiff.evaluation.editing.tools import Tools
from escdiff.mini.data.placings import draw_placing, roomy
from escdiff.mini.world import world
from escdiff.mini.world.edits import Edit
from escdiff.mini.world.rendering.render import Rendered, boxes, render
from escdiff.mini.world.world import Factors
from escdiff.pipelines.place import place

SEED = 50_000  # trainings draw from lower ones
ROOM = 1.15  # sides of the box, of the object's
SEEN = 0.08  # difference of a pixel, of the whole range, from which on it counts as painted
NOTE = """One object, in a view of its own, is to be put into a box of an empty scene. *family*, *pattern* and *color*:
the oracle reads the object's, in percent; *iou*: of the box with the bounding box of what differs from the scene (by
8 % of the range) within it; *psnr_outside*, in dB: against the scene, outside of the box; *psnr_target*: against the
render with the object, whose shadow may leave the box. With 95 % intervals. *unchanged* is the empty scene
through the VAE, *truth* the render with the object."""


def draw_places(seed: int, count: int) -> list[Edit]:
    """An object in a scene without another, before and after."""
    drawn = (draw_placing(SEED + seed, number, held_out=True) for number in numbers())
    edits = []
    while len(edits) < count:
        placing = next(drawn)
        if len(placing.after.things) == 1:
            edits.append(Edit(placing.before, placing.after, "put it there", "place"))
    return edits


def box_of(case: Case) -> Box:
    """The object's, with some room."""
    return roomy(boxes(case.objects.numpy() > 0.5)[0].tolist(), ROOM)


def view_of(case: Case) -> Rendered:
    """The object alone, seen from another side and in another light."""
    material = case.expected.material
    return render([Factors(case.expected.shape, material, world.sample_scene(case.rng, material))], case.before.width)


def anydoor(tools: Tools, case: Case) -> Image.Image:
    """By a model that was trained for it; outside of the box the latents stay."""
    view = view_of(case)
    reference, mask = Image.fromarray(view.image[0]), torch.from_numpy(view.mask[0])[None].float()
    models = tools.models
    models.use_branches(False)
    return place(
        tools.backbone, tools.placer, case.before, reference, mask, box_of(case), models.steps, models.guidance,
        case.number,
    )  # fmt: skip


def judge(tools: Tools, cases: Sequence[Case], pictures: Sequence[Image.Image]) -> list[Record]:
    """Score pictures as `NOTE` says; an oracle that tells instances apart adds "shape_id" and "material_id"."""
    records, expected = [], [Request("", case.expected) for case in cases]
    identities = identify(tools.models.gallery, ("shape_id", "material_id"), expected, pictures)
    for case, picture, reading, same in zip(cases, pictures, tools.models.read(pictures), identities, strict=True):
        painted, before, after = pixels_of([picture, case.before, case.after]).div(2).add(0.5)[:, None]
        inside = draw(box_of(case), case.before.height, case.before.width)
        values = scores.judge(("family", "pattern", "color"), reading, case.expected) | same
        values["iou"] = overlap(picture, case.before, inside)
        values["psnr_outside"] = psnr(painted, before, 1 - inside[None, None])
        values["psnr_target"] = psnr(painted, after)
        records.append(Record(case.edit, reading, values))
    return records


def overlap(picture: Image.Image, scene: Image.Image, inside: torch.Tensor) -> float:
    """Intersection over union of a box, as a mask (H, W), and the bounding box of what was painted within it."""
    painted = (to_pixels(picture) - to_pixels(scene)).abs().amax(0) / 2 * inside > SEEN
    bounds = draw(tuple(boxes(painted.numpy()[None])[0].tolist()), *inside.shape) if painted.any() else 0 * inside
    return float((bounds * inside).sum() / torch.maximum(bounds, inside).sum())


PLACES = Task(
    "places",
    draw_places,
    {"unchanged": editors.unchanged, "truth": editors.truth, "anydoor": anydoor},
    judge,
    ("family", "pattern", "color", "iou", "psnr_outside", "psnr_target", "shape_id", "material_id"),
    NOTE,
    reference=lambda case: Image.fromarray(view_of(case).image[0]),
)
