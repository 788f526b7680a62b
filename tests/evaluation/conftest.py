"""A world in which the oracle and the painter can be made perfect, so that figures are known beforehand."""

import pytest
import torch

from escdiff.evaluation import scores
from escdiff.evaluation.bench import Bench
from escdiff.evaluation.models import Models, draw
from escdiff.evaluation.tasks import TASKS
from escdiff.still_life.oracle import Oracle
from escdiff.still_life.world import Factors, Material, Scene, Shape

FEW = dict.fromkeys(TASKS, 3) | {"swap": 4, "leak": 0, "edit": 0, "copy": 0}


class Perfect(Models):
    """Paints what was expected and then reads the truth; `painted` counts the pictures."""

    def __init__(self, *parts, **options):
        super().__init__(*parts, **options)
        self.painted, self.shown = 0, []

    def paint(self, requests, references, seeds, advance):
        self.painted += len(requests)
        self.shown = [scores.truth(r.expected) for r in requests]
        return draw([r.expected for r in requests])

    def read(self, pictures):
        shown, self.shown = self.shown, []
        return shown or super().read(pictures)


@pytest.fixture
def mug() -> Factors:
    material = Material("red", "white", "striped", 0.5, 0.0, "glossy", 0.5, (0.0,) * 3, (0.0,) * 3, 1)
    return Factors(Shape("mug", (0.5,) * 4), material, Scene("navy", 0, 0, 0, 0.3, 1, 0, 0))


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    torch.manual_seed(0)
    return Oracle((8, 8, 16, 16)).eval()


@pytest.fixture
def bench(tiny_backbone, oracle, tmp_path) -> Bench:
    return Bench(Perfect(tiny_backbone, oracle, fingerprints=("x", "x")), tmp_path, numbers=FEW)
