"""Task *edits*: one factor of a picture of one object is changed, everything else is to stay."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from escdiff.control.inversion import psnr
from escdiff.evaluation.bench import scores
from escdiff.evaluation.bench.identity import identify
from escdiff.evaluation.bench.instances import Request, stream
from escdiff.evaluation.bench.pictures import pixels_of
from escdiff.evaluation.bench.records import Record
from escdiff.evaluation.editing import editors
from escdiff.evaluation.editing.cases import STREAM, Case
from escdiff.evaluation.editing.task import Task
from escdiff.evaluation.editing.tools import Tools
from escdiff.mini.world.edits import Edit, sample_edit
from escdiff.mini.world.world import TWO_ALIKE

# Kind of edit -> the factor that it changes, as the oracle calls it.
KINDS = {"color": "color", "pattern": "pattern", "shape": "family", "background": "background"}
NOTE = """Pictures of one object; edits of its colour, pattern or family or of the background, in turn. *right*: the
oracle reads the new factor, in percent; *kept*: the share of the other three that it reads as they were; *psnr_same*,
in dB: against the picture before, where the renders before and after are equal to the bit; *psnr_target*: against the
render after. With 95 % intervals over edits. *unchanged* is the picture before through the VAE: what nobody
can keep better, and what a guess gets right; *truth* is the render after through the VAE: what nobody can do better.
*plug_and_play_masked* and *attribute_transfer* are given the object's true mask, and the latter a reference in place of
the word; a changed background is no case for them."""


def draw_edits(seed: int, count: int) -> list[Edit]:
    """Edits of a single object, the kinds in turn."""
    rng, edits = stream(seed, STREAM), []
    while len(edits) < count:
        edit = sample_edit(rng, (list(KINDS)[len(edits) % len(KINDS)],))
        if len(edit.before.things) == 1:
            edits.append(edit)
    return edits


def judge(tools: Tools, cases: Sequence[Case], pictures: Sequence[Image.Image]) -> list[Record]:
    """Per picture: "right", whether the oracle reads the factor that was to change as it should be; "kept", the share
    of the other three that it reads as they were; "psnr_same" against the picture before, where the renders before and
    after are equal; "psnr_target" against the render after; and, by an oracle that tells instances apart, whether what
    must stay is re-identified ("same_shape", "same_material")."""
    records, expected = [], [Request("", case.expected) for case in cases]
    identities = identify(tools.models.gallery, ("shape_id", "material_id"), expected, pictures)
    for case, picture, reading, same in zip(cases, pictures, tools.models.read(pictures), identities, strict=True):
        changed = KINDS[case.edit.kind]
        right = scores.judge(list(KINDS.values()), reading, case.expected)
        material = case.expected.material
        if changed == "color" and material.pattern in TWO_ALIKE:
            # Read in the other order, the colours before would fit one of those after, the one that stays.
            right["color"] = float(material.color in (reading["color"], reading["color2"]))
        values = {"right": right.pop(changed), "kept": float(np.mean(list(right.values())))}
        painted, before, after = pixels_of([picture, case.before, case.after]).div(2).add(0.5)[:, None]
        if case.same.any():
            values["psnr_same"] = psnr(painted, before, case.same[None])
        values["psnr_target"] = psnr(painted, after)
        stays = {"shape_id": case.edit.kind != "shape", "material_id": case.edit.kind in ("shape", "background")}
        values |= {f"same_{name.removesuffix('_id')}": value for name, value in same.items() if stays[name]}
        records.append(Record(case.edit, reading, values | {f"right_{case.edit.kind}": values["right"]}))
    return records


EDITS = Task(
    "edits",
    draw_edits,
    {
        function.__name__: function
        for function in (
            editors.unchanged, editors.truth, editors.img2img, editors.plug_and_play, editors.plug_and_play_masked,
            editors.pix2pix_zero, editors.attribute_transfer, editors.instruct_pix2pix,
        )
    },
    judge,
    ("right", "kept", "psnr_same", "psnr_target", "same_shape", "same_material"),
    NOTE,
    tuple(f"right_{kind}" for kind in KINDS),
    lambda case: case.reference and case.reference[1],
)  # fmt: skip
