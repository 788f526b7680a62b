"""Pairs of near neighbours, exactly and in a fixed order, and who stays of them."""

from itertools import pairwise

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

BLOCK = 4096  # rows compared at once


def close_hashes(hashes: np.ndarray, distance: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (P, 2), first < second, of 64-bit hashes (N,) uint64 that differ in at most `distance` bits.

    Of `distance + 1` bands of bits at least one is equal in such a pair, so only those are compared. Equal
    hashes are paired with their first only, since a thousand black pictures would make a million pairs.

    Returns:
        The pairs, and for each hash (N,) where its like was first.
    """
    distinct, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    same = first[inverse]
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


def split_by_colour(
    pairs: np.ndarray, same: np.ndarray, colours: np.ndarray, distance: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tell near duplicates in the same colours from those in others.

    Args:
        pairs, same: of `close_hashes`.
        colours: (N, C, 3) CIELAB of C places of each picture.
        distance: from which two pictures have other colours, see `colour_distance`.

    Returns:
        Pairs (P, 2) in the same colours, for each item (N,) where its like in hash and colour was first, and pairs
        (Q, 2) in other colours.
    """
    kinds: dict[int, list[int]] = {}  # of each hash, the first item of each colour
    alike = np.empty_like(same)
    for item, first in enumerate(same.tolist()):
        members = kinds.setdefault(first, [])
        near = colour_distance(colours[members], colours[[item]]) < distance if members else np.zeros(0, bool)
        alike[item] = members[int(near.argmax())] if near.any() else item
        if not near.any():
            members.append(item)
    different = same[pairs[:, 0]] != same[pairs[:, 1]]
    hashes = np.unique(same[pairs[different]].reshape(-1, 2), axis=0)
    across = [(a, b) for x, y in hashes.tolist() for a in kinds[x] for b in kinds[y]]
    within = [(members[0], other) for members in kinds.values() for other in members[1:]]
    again = np.flatnonzero(alike != np.arange(len(alike)))
    every = np.array(across, np.int64).reshape(-1, 2)
    near = np.zeros(len(every), bool)
    for rows in range(0, len(every), BLOCK):
        a, b = every[rows : rows + BLOCK].T
        near[rows : rows + BLOCK] = colour_distance(colours[a], colours[b]) < distance
    close = np.concatenate([every[near], np.stack([alike[again], again], 1)])
    return _ordered(close), alike, _ordered(np.concatenate([every[~near], np.array(within, np.int64).reshape(-1, 2)]))


def colour_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(P,) mean CIELAB distance of pictures (P, C, 3) over the quarter of their places that differ most."""
    distances = np.linalg.norm(first.astype(np.float32) - second.astype(np.float32), axis=-1)
    return np.sort(distances, axis=-1)[..., -max(distances.shape[-1] // 4, 1) :].mean(-1)


def groups_of(pairs: np.ndarray) -> dict[int, int]:
    """item -> the first item of its group, where `pairs` (P, 2) hang together."""
    if not len(pairs):
        return {}
    size = int(pairs.max()) + 1
    graph = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(size, size))
    _, labels = connected_components(graph, directed=False)
    members = np.unique(pairs)
    _, first, inverse = np.unique(labels[members], return_index=True, return_inverse=True)
    return dict(zip(members.tolist(), members[first][inverse].tolist(), strict=True))


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
    """Item to drop -> the item kept in its place: each that is near an earlier kept one.

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
