"""The overview that `python infer.py` paints without arguments: all uses of two filters on a few references."""

from collections.abc import Sequence

from escdiff.concept import Concept

BOTH = "a photo of a <appearance> <shape> on a {} background"
SHAPE = "a photo of a {} <shape> on a {} background"
CUBE = "a photo of a <appearance> cube on a gray background"
COLUMNS = ("reference", "both, on gray", "both, on navy", "shape, in glossy pink", "shape, in metallic yellow",
           "appearance, on a cube", "shape + appearance of the next row")  # fmt: skip


def requests(concepts: Sequence[Concept]) -> list[tuple[str, Concept]]:
    """(prompt, concept) of every cell, row by row, without the column of references."""
    cells = []
    for row, concept in enumerate(concepts):
        swapped = Concept.combine(shape=concept, appearance=concepts[(row + 1) % len(concepts)])
        prompts = (BOTH.format("gray"), BOTH.format("navy"), SHAPE.format("glossy pink", "sky"),
                   SHAPE.format("metallic yellow", "lavender"), CUBE)  # fmt: skip
        cells += [*((prompt, concept) for prompt in prompts), (BOTH.format("gray"), swapped)]
    return cells
