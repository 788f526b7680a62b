"""A folder of concepts to look through: the files, a preview of each, one overview and a card."""

from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from escdiff.backbone import Backbone
from escdiff.backbone.adapters.attached import applied
from escdiff.concept import Concept
from escdiff.encoder.checkpoint import CARD
from escdiff.pipelines.generate import generate
from escdiff.sharing.hub import concept_card, copy_concept
from escdiff.support.errors import UserError
from escdiff.support.files import write_atomic
from escdiff.support.picture_grid import picture_grid

SCENES = (
    "a photo of a {} on a white background",
    "a photo of a {} on a beach",
    "a {} in the snow",
    "a painting of a {}",
)


def make_gallery(
    files: Sequence[str | Path], backbone: Backbone, out: Path, scenes: Sequence[str] = SCENES, steps: int = 25,
    guidance: float = 5.0, on_step: Callable[[int], None] | None = None,
) -> dict[str, Concept]:  # fmt: skip
    """Paint every concept in every scene from the same noise; returns stem -> concept.

    Previews that stand are kept: stop it and start it again. The weights that a concept brings are copied with it.

    Args:
        scenes: prompts with {} where the concept belongs.

    Raises:
        UserError: no files, two of one name, or a concept for another backbone or without its weights.
    """
    paths = {Path(file).stem: Path(file) for file in files}
    if not paths or len(paths) < len(files):
        raise UserError(
            f"{len(files)} concept files with {len(paths)} names given; expected some, each of its own name"
        )
    concepts = {name: Concept.load(path) for name, path in paths.items()}
    out.mkdir(parents=True, exist_ok=True)
    for name, concept in concepts.items():
        if (out / f"{name}.png").is_file():
            continue
        word = "<concept>" if "<concept>" in concept.placeholders() else next(iter(concept.placeholders()))
        prompts = [scene.format(word) for scene in scenes]
        with applied(backbone, [concept], [paths[name].parent]):
            pictures = generate(backbone, prompts, concept, steps=steps, guidance=guidance, seeds=[0] * len(prompts),
                                on_step=on_step)  # fmt: skip
        preview = out / f".{name}.partial.png"
        picture_grid([pictures]).save(preview)
        copy_concept(paths[name], concept, out, preview)
        preview.replace(out / f"{name}.png")
    rows = []
    for name in concepts:
        with Image.open(out / f"{name}.png") as preview:
            rows.append([preview.convert("RGB")])
    picture_grid(rows, list(concepts), cell=128 * len(scenes)).save(out / "gallery.png")
    write_atomic(out / CARD, concept_card(concepts, previews=True))
    return concepts
