"""Metrics of pictures: a value for each, and their mean."""

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class PictureMetric(Metric):
    """One value per picture; `compute` is their mean, over all processes where there are several.

    Subclasses write `score`, whose arguments are `update`'s.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    values: list[Tensor]

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.add_state("values", [], dist_reduce_fx="cat")

    def score(self, *batch) -> Tensor:
        """(B,), one value per picture."""
        raise NotImplementedError

    def update(self, *batch) -> None:
        self.values.append(self.score(*batch).detach().float().cpu())

    def compute(self) -> Tensor:
        return dim_zero_cat(self.values).mean()
