"""LPIPS against its authors' library, on an AlexNet of random weights: the trained ones are a download."""

import pytest
import torch
import torchvision

from escdiff.data.pictures import to_pixels
from escdiff.evaluation.metrics.perceptual import SIZE, Lpips


@pytest.fixture
def random_alexnet(tmp_path, monkeypatch):
    """Where both libraries look for torchvision's AlexNet."""
    torch.manual_seed(0)
    url = torchvision.models.AlexNet_Weights.IMAGENET1K_V1.url
    path = tmp_path / "hub" / "checkpoints" / url.rsplit("/", 1)[1]
    path.parent.mkdir(parents=True)
    torch.save(torchvision.models.alexnet(weights=None).state_dict(), path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


def test_the_same_picture_is_at_zero_and_others_are_not(random_alexnet, pictures):
    metric = Lpips()
    assert metric.score(pictures[:2], pictures[:1])[0].item() == pytest.approx(0, abs=1e-6)
    assert metric.score(pictures[1:2], pictures[:1]).item() > 1e-4
    both = metric.score(pictures[1:2], pictures[2:4]).item()
    assert both == pytest.approx(sum(metric.score(pictures[1:2], [p]).item() for p in pictures[2:4]) / 2, abs=1e-6)


def test_lpips_is_its_authors(random_alexnet, pictures):
    reference = pytest.importorskip("lpips").LPIPS(net="alex", verbose=False)
    one, other = (to_pixels(p, SIZE)[None] for p in pictures[:2])
    with torch.no_grad():
        theirs = reference(one, other).item()
    assert Lpips().score(pictures[:1], pictures[1:2]).item() == pytest.approx(theirs, abs=1e-6)
