"""Metrics of pictures: a value for each, and their mean.

Every metric declares what pictures are held against, one of `AGAINST`, and the unit of its values, one of
`escdiff.evaluation.report.units.UNITS`.
"""

from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

AGAINST = {  # -> arguments of `score`, for B pictures
    "text": "pictures and their texts, which hold no placeholder",
    "real": "pictures and the subject's N real ones",
    "shape": "masks (H, W) of the object and of the shape's reference",
    "appearance": "pictures, their masks, the appearance's references, their masks",
    "set": "no `score`: `update(pictures, real)` as often as needed, and `compute()` of them all",
}


class PictureMetric(Metric):
    """One value per picture; `compute` is their mean, over all processes where there are several.

    Subclasses declare `against` and `unit` and write `score`, whose arguments are `update`'s.
    """

    against: str
    unit: str

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
