import numpy as np

from data_prep.neighbours import close_features, close_hashes, greedy


def brute(hashes, distance) -> dict[int, int]:
    dropped: dict[int, int] = {}
    for j in range(len(hashes)):
        for i in range(j):
            if i not in dropped and bin(int(hashes[i]) ^ int(hashes[j])).count("1") <= distance:
                dropped[j] = i
                break
    return dropped


def test_close_hashes_are_all_found():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**63, 60, dtype=np.uint64)
    flips = np.array([sum(1 << int(b) for b in rng.choice(64, rng.integers(0, 9), False)) for _ in range(400)])
    hashes = base[rng.integers(0, 60, 400)] ^ flips.astype(np.uint64)
    for distance in (0, 3, 6):
        pairs, same = close_hashes(hashes, distance)
        assert {tuple(sorted(p)) for p in pairs.tolist()} >= {
            (i, j) for j in range(400) for i in range(j)
            if hashes[i] != hashes[j] and np.bitwise_count(hashes[i] ^ hashes[j]) <= distance
            and i == same[i] and j == same[j]
        }  # fmt: skip
        assert set(greedy(pairs, same)) == set(brute(hashes, distance))


def test_equal_ones_share_the_fate_of_their_first():
    hashes = np.array([0b0, 0b1, 0b1, 0b11, 0b11], np.uint64)
    pairs, same = close_hashes(hashes, 1)
    assert greedy(pairs, same) == {1: 0, 2: 0, 4: 3}
    assert greedy(pairs, same, protected=3) == {3: 1, 4: 1}


def test_many_equal_hashes_stay_few_pairs():
    pairs, _ = close_hashes(np.zeros(100_000, np.uint64), 6)
    assert len(pairs) == 99_999


def test_close_features():
    angles = np.array([0.0, 0.1, 1.0, 0.05])
    features = np.stack([np.cos(angles), np.sin(angles)], 1)
    assert close_features(features, np.cos(0.11)).tolist() == [[0, 1], [0, 3], [1, 3]]
