"""The overview that `python infer.py` paints without arguments: all uses of two filters on a few references."""

from collections.abc import Sequence

from escdiff.concept import Concept

SHAPE, APPEARANCE = "a photo of a <shape> on a white background", "a photo of a <appearance> cube on a white background"
BOTH = "a photo of a <appearance> <shape> on a gray background"
EDITS = (
    "a photo of a <appearance> <shape> on a navy background",
    "a photo of a glossy pink <shape> on a sky background",
)
COLUMNS = ("reference", "shape only", "appearance only, on a cube", "both", "shape + appearance of the next row",
           "both, on navy", "shape, in pink on sky")  # fmt: skip


def requests(concepts: Sequence[Concept]) -> list[tuple[str, Concept]]:
    """(prompt, concept) of every cell, row by row, without the column of references."""
    cells = []
    for row, concept in enumerate(concepts):
        swapped = Concept.combine(shape=concept, appearance=concepts[(row + 1) % len(concepts)])
        single = [(prompt, concept) for prompt in (SHAPE, APPEARANCE, BOTH)]
        cells += [*single, (BOTH, swapped), *((prompt, concept) for prompt in EDITS)]
    return cells
