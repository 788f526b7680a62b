"""The references of one batch of swap triples: pixels whose framings are drawn anew, or stored tokens."""

from typing import Any

import numpy as np

from escdiff.concept import ATTRIBUTES
from escdiff.data.views import reframe_both
from escdiff.mini.data.arrays import StillLifeArrays
from escdiff.mini.data.token_cache import StoredTokens, own_mask

Rows = dict[str, np.ndarray]  # attribute -> (B,) rows of the dataset


class LiveReferences:
    """Pixels (B, 3, H, W), for a tower that runs at every step."""

    def __init__(self, arrays: StillLifeArrays, rows: Rows) -> None:
        self.arrays = arrays
        self.pixels = {a: arrays.pixels(numbers) for a, numbers in rows.items()}
        self.masks = {a: arrays.masks(numbers) for a, numbers in rows.items()}

    def reframe(self, attribute: str, i: int, rng: np.random.Generator) -> None:
        """Frame reference `i` anew."""
        pixels, masks = self.pixels[attribute], self.masks[attribute]
        pixels[i], masks[i] = reframe_both(pixels[i], masks[i], rng)

    def replace(self, i: int, row: int, rng: np.random.Generator) -> None:
        """Put one framing of picture `row` in the place of both references `i`."""
        pixels, mask = reframe_both(self.arrays.pixels([row])[0], self.arrays.masks([row])[0], rng)
        for attribute in ATTRIBUTES:
            self.pixels[attribute][i], self.masks[attribute][i] = pixels, mask

    def batch(self, targets: np.ndarray) -> dict[str, Any]:
        """Entries "{attribute}_ref" and "{attribute}_mask", and the "mask" of the targets."""
        batch = {f"{a}_ref": pixels for a, pixels in self.pixels.items()}
        batch |= {f"{a}_mask": masks for a, masks in self.masks.items()}
        return batch | {"mask": self.arrays.masks(targets)}


class StoredReferences:
    """Tokens (B, F); each picture has one framing of its own."""

    def __init__(self, arrays: StillLifeArrays, rows: Rows, tokens: StoredTokens) -> None:
        self.arrays, self.tokens = arrays, tokens
        self.rows = {a: numbers.copy() for a, numbers in rows.items()}
        self.framed = {a: np.zeros(len(numbers), bool) for a, numbers in rows.items()}

    def reframe(self, attribute: str, i: int, rng: np.random.Generator) -> None:
        """Take the other view of reference `i`."""
        self.framed[attribute][i] = True

    def replace(self, i: int, row: int, rng: np.random.Generator) -> None:
        """Put the other view of picture `row` in the place of both references `i`."""
        for attribute in ATTRIBUTES:
            self.rows[attribute][i], self.framed[attribute][i] = row, True

    def batch(self, targets: np.ndarray) -> dict[str, Any]:
        """Entries "{attribute}_tokens" and "{attribute}_mask", and "target_tokens" and "mask" of the targets."""
        plain = np.zeros(len(targets), bool)
        batch = {"target_tokens": self.tokens(targets, plain), "mask": self.arrays.masks(targets)}
        for attribute, rows in self.rows.items():
            framed, masks = self.framed[attribute], self.arrays.masks(rows)
            for i in np.flatnonzero(framed):
                masks[i] = own_mask(masks[i], int(rows[i]))
            batch |= {f"{attribute}_tokens": self.tokens(rows, framed), f"{attribute}_mask": masks}
        return batch


References = LiveReferences | StoredReferences
