"""Pictures by aspect ratio: batches of one shape each, so that wide and tall photographs are not cut to squares."""

from collections.abc import Iterable, Sequence

import numpy as np

WIDEST = 2.0  # ratio of the sides
SAMPLED = 1000  # pictures whose shapes say how often each bucket is drawn


def bucket_shapes(size: int) -> list[tuple[int, int]]:
    """(height, width) in pixels of the buckets, from tall to wide, all with about the area of a square of `size`.

    Sides are multiples of 64, as the U-Nets of Stable Diffusion halve latents three times; of a quarter of the square's
    side where that is less.
    """
    step = min(64, max(size // 4, 8))
    shapes = set()
    for width in range(step, int(size * WIDEST) + 1, step):
        height = size * size // width // step * step
        if height and max(width, height) <= WIDEST * min(width, height):
            shapes |= {(height, width), (width, height)}
    return sorted(shapes, key=lambda shape: (shape[1] / shape[0], shape))


def nearest(shapes: Sequence[tuple[int, int]], width: int, height: int) -> int:
    """Number of the bucket that cuts least from a picture; of equal ratios the larger."""
    ratio = width / height
    return min(range(len(shapes)), key=lambda i: (abs(np.log(shapes[i][1] / shapes[i][0] / ratio)), -shapes[i][0]))


def bucket_shares(count: int, buckets: Iterable[int]) -> np.ndarray:
    """(count,) probabilities of the buckets after those of some pictures; equal ones where there are none."""
    counts = np.bincount(list(buckets), minlength=count).astype(float)
    return counts / counts.sum() if counts.sum() else np.full(count, 1 / count)
