import pytest
import torch

from escdiff.encoder.packing import Packing


@pytest.mark.parametrize(
    ("packing", "name", "values"),
    [
        (Packing((0, 2), 4, 9, 5, 0), "0.2", 90),
        (Packing((0, 2), 4, 9, 5, 7), "0.2e", 97),
        (Packing((0, 1, 2, 3), 4, 9, 5, 7), "0.1.2.3e", 187),
    ],
)
def test_what_is_packed_comes_out_again(packing, name, values):
    tokens = [torch.randn(3, 9, 5) for _ in range(4)] + [torch.randn(3, 1, 7)] * bool(packing.embedding)
    rows = packing.pack(tokens)
    assert rows.shape == (3, packing.values) == (3, values) and packing.name == name
    found = packing.unpack(rows)
    assert len(found) == len(tokens)
    for depth, (before, after) in enumerate(zip(tokens, found, strict=True)):
        if depth in packing.depths or depth == 4:
            assert torch.equal(before, after)
        else:
            assert after.shape == (3, 0, 5)
    assert packing.unpack(rows.half())[0].dtype == torch.float32
