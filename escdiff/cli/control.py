"""`python infer.py control=...` and `python infer.py picture=FILE edit=...`: steering, and editing a real picture."""

import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from escdiff.cli import trained_edits
from escdiff.support.config.control import NamedConfig
from escdiff.support.config.infer import InferConfig
from escdiff.support.errors import UserError

TEXTS = ("picture", "source", "groups", "boxes")
HELP = (
    """  python infer.py control=conform groups="red mug; blue chair" prompt="a red mug and a blue chair"
  python infer.py control=boxes boxes="mug=0,.2,.5,1; chair=.5,.2,1,1" prompt="a mug and a chair"
  python infer.py picture=photo.png source="a photo of a red mug" edit=plug_and_play prompt="a photo of a blue mug"
  python infer.py picture=photo.png source="a photo of a red mug" edit=transfer appearance=b.png \\
                  prompt="a photo of a <appearance> mug"
"""
    + trained_edits.HELP
)
EVERY = ("name", "rounds", "mask", "paste")  # keys of an edit that are no options of its control
log = logging.getLogger(__name__)


def steers(config: InferConfig) -> bool:
    """Whether a control or an edit was asked for."""
    return bool(config.control or config.edit or config.given(*TEXTS))


def check_control(config: InferConfig) -> None:
    """Refuse what no steered run could use, before anything is loaded.

    Raises:
        UserError: the first thing that is wrong.
    """
    control, edit, texts = config.control, config.edit, config.given(*TEXTS)
    if control and edit:
        raise UserError(f"control={control.name} and edit={edit.name} were both given; expected one of them")
    if not control and not edit:
        raise UserError(
            f"{next(iter(texts))}= was given without a control; expected control= or, with picture=, edit=; see --help"
        )
    trained = bool(edit) and edit.name in trained_edits.NEEDED
    if edit:
        if sides := config.given("size", "height", "width"):
            key, side = next(iter(sides.items()))
            raise UserError(f"{key}={side} was given, but edit={edit.name} paints at the model's size; leave it out")
        if not trained and config.num_images not in (1, InferConfig.num_images):
            raise UserError(
                f"num_images={config.num_images} was given, but edit={edit.name} makes one picture, which no seed "
                "changes; leave it out"
            )
        needed = trained_edits.NEEDED.get(edit.name, ("picture", "source", "prompt"))
    else:
        needed = ("boxes" if control.name == "boxes" else "groups", "prompt")
    for key in needed:
        if not (getattr(edit, key.removeprefix("edit.")) if key.startswith("edit.") else config.given(key)):
            raise UserError(f"{(edit or control).name} needs {key}=; see --help for an example")
    readable = (*TEXTS, "prompt", *(("shape", "appearance", "concept") if trained else ()))
    idle = [key for key in config.given(*readable) if key not in needed]
    if idle:
        raise UserError(f"{idle[0]}= was given, which {(edit or control).name} does not read; leave it out")
    if edit and edit.name == "transfer":
        references = list(config.given("shape", "appearance"))
        if len(references) != 1:
            raise UserError(f"edit=transfer was given {len(references)} references; expected shape= or appearance=")
        if references == ["shape"] and edit.mask in (None, "auto"):
            raise UserError(
                "a new shape has another outline; expected edit.mask=FILE, white where there is room for it"
            )


def run_control(config: InferConfig, read: Callable[[InferConfig], tuple[Any, dict, dict]], seconds: Any) -> Path:
    """Paint with a control, or edit a picture; returns the folder.

    Args:
        read: gives the backbone, the reference pictures by path and the concepts by file stem.
        seconds: `escdiff.cli.infer.Seconds`.

    Raises:
        UserError: anything that the user can mend.
    """
    from escdiff.cli.checks import check_prompt, sides_of
    from escdiff.cli.masks import read_picture
    from escdiff.cli.results import write_results
    from escdiff.control.inversion import fidelity, invert
    from escdiff.control.keep import paste
    from escdiff.data.pictures import open_image
    from escdiff.pipelines.edit import edit_controls, with_ddim
    from escdiff.pipelines.generate import generate
    from escdiff.support.progress import sample_progress

    check_control(config)
    for path in _files(config):
        open_image(path)  # a wrong path is told before models are loaded
    if config.edit and config.edit.name in trained_edits.NEEDED:
        return trained_edits.run_trained(config, seconds)
    backbone, pictures, concepts = read(config)
    concept = next(iter(concepts.values()), None)
    if concept is not None and "adapter" in concept.notes:
        raise UserError("the concept brings weights along; a control expects words, as of an encoder or of ti and xti")
    if concept is not None:
        check_prompt(config.prompt, concept.attributes, list(config.given("shape", "appearance")))
    prompt, count, mask, sides = config.prompt, config.num_images, None, {}
    if edit := config.edit:
        with seconds.phase("invert"):
            picture, mask = read_picture(config.picture, edit.mask, config.segmenter, backbone.picture_size)
            backbone = with_ddim(backbone)
            pipeline = backbone.pipeline()
            pipeline.set_progress_bar_config(disable=True)
            source = invert(pipeline, picture, config.source, config.steps, edit.rounds)
            log.warning("inverted and painted again, the picture has %.1f dB to the VAE's", fidelity(pipeline, source))
            options = {key: value for key, value in asdict(edit).items() if key not in EVERY}
            controls, prompt = edit_controls(backbone, edit.name, source, prompt, concept, mask, options)
        pictures, count = {config.picture: picture, **pictures}, 1  # it begins with the picture, not with a seed
    else:
        controls, sides = [make_control(config, config.control)], sides_of(config, backbone)
    with seconds.phase("paint"), sample_progress("painting", count * config.steps) as advance:
        painted = generate(
            backbone, [prompt] * count, concept, steps=config.steps, guidance=config.guidance,
            seeds=range(config.seed, config.seed + count), negative_prompt=config.negative_prompt or "",
            batch_size=config.batch_size, on_step=advance, controls=controls, **sides,
        )  # fmt: skip
    if mask is not None and config.edit.paste:
        painted = [paste(result, picture, mask) for result in painted]
    return write_results(config, pictures, concepts, [config.prompt], painted, (), seconds)


def _files(config: InferConfig) -> list[str]:
    """The pictures that an edit reads, its references for the encoder apart."""
    named = (config.picture, *(getattr(config.edit, key, None) for key in ("mask", "reference")))
    return [path for path in named if path and path != "auto"]


def make_control(config: InferConfig, settings: NamedConfig):
    """The control of `configs/control/*.yaml`."""
    from escdiff.control.attend_excite import AttendExcite
    from escdiff.control.boxes import Boxes
    from escdiff.control.conform import Conform

    kinds = {"conform": Conform, "attend_excite": AttendExcite, "boxes": Boxes}
    options = {key: value for key, value in asdict(settings).items() if key != "name"}
    return kinds[settings.name](config.boxes if settings.name == "boxes" else config.groups, **options)
