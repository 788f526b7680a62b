"""Pairs of near neighbours, exactly and in a fixed order, and who stays of them."""

from itertools import pairwise

import numpy as np

BLOCK = 4096  # rows compared at once


def close_hashes(hashes: np.ndarray, distance: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (P, 2), first < second, of 64-bit hashes (N,) uint64 that differ in at most `distance` bits.

    Of `distance + 1` bands of bits at least one is equal in such a pair, so only those are compared. Equal
    hashes are paired with their first only, since a thousand black pictures would make a million pairs.

    Returns:
        The pairs, and for each hash (N,) where its like was first.
    """
    distinct, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    same = first[which]
    later = np.flatnonzero(same != np.arange(len(hashes)))
    pairs = [np.stack([same[later], later], 1)]
    bounds = np.linspace(0, 64, distance + 2).round().astype(int)
    for low, high in pairwise(bounds):
        band = (distinct >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.r_[True, band[order][1:] != band[order][:-1]])
        for rows in np.split(order, starts[1:]):
            for i in range(0, len(rows), BLOCK):
                for j in range(i, len(rows), BLOCK):
                    a, b = rows[i : i + BLOCK], rows[j : j + BLOCK]
                    near = np.bitwise_count(distinct[a][:, None] ^ distinct[b][None]) <= distance
                    x, y = np.nonzero(near)
                    pairs.append(np.stack([first[a[x]], first[b[y]]], 1))
    return _ordered(np.concatenate(pairs)), same


def close_features(features: np.ndarray, similarity: float) -> np.ndarray:
    """Pairs (P, 2), first < second, of rows (N, D) of unit length with at least that cosine."""
    features = features.astype(np.float32)
    pairs = [np.zeros((0, 2), np.int64)]
    for i in range(0, len(features), BLOCK):
        for j in range(i, len(features), BLOCK):
            x, y = np.nonzero(features[i : i + BLOCK] @ features[j : j + BLOCK].T >= similarity)
            pairs.append(np.stack([x + i, y + j], 1))
    return _ordered(np.concatenate(pairs))


def greedy(pairs: np.ndarray, same: np.ndarray, protected: int = 0) -> dict[int, int]:
    """Which items to drop, and for which kept one: each that is near an earlier kept one.

    `same` is that of `close_hashes`: what equals a dropped item is dropped like it. The first `protected`
    items always stay.
    """
    pairs = pairs[np.lexsort((pairs[:, 0], pairs[:, 1]))]
    dropped: dict[int, int] = {}
    for first, second in pairs.tolist():
        if second < protected or second in dropped:
            continue
        if first not in dropped:
            dropped[second] = first
        elif same[second] == first:
            dropped[second] = dropped[first]
    return dropped


def _ordered(pairs: np.ndarray) -> np.ndarray:
    pairs = np.sort(pairs.astype(np.int64), axis=1)
    return np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
