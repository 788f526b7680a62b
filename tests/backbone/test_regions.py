import copy

import pytest
import torch

from escdiff.backbone import compile as regions
from escdiff.backbone.compile import compile_regions
from escdiff.conditioning.layer_feed import LayerFeed
from escdiff.support.errors import UserError


def gradient(unet, space, batch=2):
    torch.manual_seed(0)
    grid = torch.randn(batch, 16, 77, 32, requires_grad=True)
    feed = LayerFeed(unet, space)
    noisy, timesteps = torch.randn(2 * batch, 8, 16, 16), torch.arange(2 * batch) * 100
    output = unet(noisy, timesteps, encoder_hidden_states=feed.load(grid, 2)).sample
    output.square().sum().backward()
    feed.remove()
    return output.detach(), grid.grad


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [False, True])
def test_compiled_regions_compute_the_same(tiny_backbone, channels_last):
    """By the backend that traces and differentiates as inductor does, and runs the graph without a C++ compiler."""
    space, unet = tiny_backbone.p_plus(), copy.deepcopy(tiny_backbone.unet)
    names = set(unet.state_dict())
    if channels_last:
        unet.to(memory_format=torch.channels_last)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    assert compile_regions(unet, backend="aot_eager") == 22 + 16
    for expected, found in zip(gradient(tiny_backbone.unet, space), gradient(unet, space), strict=True):
        assert torch.allclose(expected, found, rtol=1e-4, atol=1e-5)
    counters = torch._dynamo.utils.counters
    graphs = counters["stats"]["unique_graphs"]
    assert 2 <= graphs < 38 and not counters["graph_break"]  # equal regions share a graph
    assert set(unet.state_dict()) == names
    other = copy.deepcopy(unet)
    for parameter in other.parameters():
        parameter.data.zero_()
    assert not gradient(other, space)[0].any()  # its own weights
    with torch.no_grad():
        unet(torch.randn(1, 8, 16, 16), 5, encoder_hidden_states=torch.randn(1, 77, 32))
    assert counters["stats"]["unique_graphs"] == graphs  # pictures in between compile nothing


def test_a_missing_compiler_is_told(tiny_backbone, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(regions.shutil, "which", lambda _: None)
    with pytest.raises(UserError, match=r"compile=true given without a C\+\+ compiler"):
        compile_regions(tiny_backbone.unet)
