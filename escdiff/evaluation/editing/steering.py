"""Task *steering*: two things of different colours in one prompt, painted under each control and under a null."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from PIL import Image

from escdiff.control import Control
from escdiff.control.attend_excite import AttendExcite
from escdiff.control.boxes import Boxes
from escdiff.control.conform import Conform
from escdiff.data.prompts import article
from escdiff.evaluation.bench.instances import stream
from escdiff.evaluation.bench.pictures import pixels_of
from escdiff.evaluation.bench.records import Record
from escdiff.evaluation.bench.scenes.readings import find, read
from escdiff.evaluation.bench.scenes.requests import BESIDE, phrase_of, two_things
from escdiff.evaluation.editing import editors
from escdiff.evaluation.editing.cases import Case
from escdiff.evaluation.editing.task import Editor, Task
from escdiff.evaluation.editing.tools import Tools
from escdiff.mini.world.arrangement import Arrangement
from escdiff.mini.world.edits import Edit
from escdiff.mini.world.rendering.render import boxes, render
from escdiff.mini.world.scene_captions import scene_caption
from escdiff.pipelines.generate import generate
from escdiff.support.errors import UserError

STREAM = 2500  # of random numbers
NOTE = """One prompt a case, such as "a photo of a red mug and a blue cube on a gray background", and one picture of it,
with the same noise in every row. *pair*: the scene oracle sees both things; *bind*: each in its own colour; *alone*: it
sees nothing else; in percent. *passes*: calls of the U-Net, those with gradients included. With 95 % intervals.
*random* is a null: CONFORM's schedule, with updates of the gradient's length in random directions. *truth* is a render
through the VAE. *boxes* is given the places of that render's things, the others only words."""


def draw_steerings(seed: int, count: int) -> list[Edit]:
    """An empty scene, then two plain things of different families and colours side by side in it."""
    edits = []
    for number in range(count):
        rng = stream(seed, STREAM + number)
        while True:
            after = two_things(rng, BESIDE)
            if all(thing.material.pattern == "plain" for thing in after.things):
                break
        edits.append(Edit(after.without(1).without(0), after, "; ".join(map(article, phrases(after))), "pair"))
    return edits


def phrases(picture: Arrangement) -> list[str]:
    """What the prompt calls its things: "red mug"."""
    return [phrase_of(thing) for thing in picture.things]


def prompt_of(case: Case) -> str:
    """Both things with "and" between them: which side is whose is left to the model."""
    return scene_caption(replace(case.edit.after, relation=""))


def steered(control: Callable[[Case], Control | None]) -> Editor:
    """The editor that paints a case's prompt under a control, and notes its passes in `Tools.passes`."""

    def paint(tools: Tools, case: Case) -> Image.Image:
        calls = []
        counter = tools.backbone.unet.register_forward_hook(lambda *_: calls.append(1))
        tools.models.use_branches(False)
        chosen = control(case)
        try:
            (picture,) = generate(
                tools.backbone, [prompt_of(case)], steps=tools.models.steps, guidance=tools.models.guidance,
                seeds=[case.number], controls=[chosen] if chosen else [],
            )  # fmt: skip
        finally:
            counter.remove()
        tools.passes[case.number] = len(calls)
        return picture

    return paint


def places(case: Case) -> Boxes:
    """Each phrase in the box of its thing in the render."""
    found = boxes(render([case.edit.after], case.before.width).whole[0]).tolist()
    return Boxes(dict(zip(phrases(case.edit.after), map(tuple, found), strict=True)))


def judge(tools: Tools, cases: Sequence[Case], pictures: Sequence[Image.Image]) -> list[Record]:
    """Score pictures as `NOTE` says.

    Raises:
        UserError: no judge of scenes.
    """
    if tools.models.scene_oracle is None:
        raise UserError(
            "steering is judged by the scene oracle, which is missing here; install escdiff with its assets"
        )
    records = []
    for case, reading in zip(cases, read(tools.models.scene_oracle, pixels_of(pictures)), strict=True):
        things = case.edit.after.things
        values = {
            "pair": all(find(thing, reading) for thing in things),
            "bind": all(find(thing, reading, colored=True) for thing in things),
            "alone": len(reading["things"]) == len(things),
        }
        values = {name: float(value) for name, value in values.items()}
        if case.number in tools.passes:
            values["passes"] = float(tools.passes.pop(case.number))
        records.append(Record(case.edit, reading, values))
    return records


STEERING = Task(
    "steering",
    draw_steerings,
    {
        "truth": editors.truth,
        "none": steered(lambda case: None),
        "random": steered(lambda case: Conform(phrases(case.edit.after), null_seed=case.number)),
        "attend_excite": steered(lambda case: AttendExcite(phrases(case.edit.after))),
        "conform": steered(lambda case: Conform(phrases(case.edit.after))),
        "boxes": steered(places),
    },
    judge,
    ("pair", "bind", "alone", "passes"),
    NOTE,
)
