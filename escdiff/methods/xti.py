"""Extended Textual Inversion (Voynov et al. 2023, P+, arXiv 2303.09522): a word vector per cross-attention layer.

Space: P+, 16 x 1 (eq. 3 with one lookup per layer). Paper: lr 5e-3, 500 steps, batch 8; 1e-3 for a single picture.
Section 4.2 explains P+'s better editing by the learned vectors' higher density among real words; `density` adds that
as a regulariser (ours), and every concept notes its own.
"""

from torch import Tensor

from escdiff.backbone.frozen import Frozen
from escdiff.methods.ti import BANDWIDTH, TI
from escdiff.support.errors import UserError


class XTI(TI):
    """TI with a vector per layer; with `layers="tied"` it is TI.

    Args:
        lr_one: learning rate for a single reference; null keeps optim.lr.
        density: weight of the mean negative log density of the vectors among the vocabulary's.
        bandwidth: of the kernel, in units of a word embedding's mean norm.
    """

    def __init__(
        self, backbone: Frozen, init: str = "object", vectors: int = 1, templates="auto", keep_norm: bool = True,
        layers: str = "each", lr_one: float | None = 1e-3, density: float = 0.0,
        bandwidth: float = BANDWIDTH,
    ) -> None:  # fmt: skip
        super().__init__(backbone, init, vectors, templates, keep_norm, layers)
        if density and backbone.prompts.embedding_weight is None:
            what = f"method.density={density} given; the vectors of {backbone.name!r} stand behind the text encoder"
            raise UserError(f"{what}, where no words are dense: leave it 0")
        self.lr_one, self.density_weight, self.bandwidth = lr_one, density, bandwidth

    def rate(self, lr: float, references: int) -> float:
        return self.lr_one if references == 1 and self.lr_one else lr

    def regularizers(self, vectors) -> dict[str, Tensor]:
        if not self.density_weight:
            return {}
        return {"density": self.density_weight * self.density(vectors[self.attribute], self.bandwidth)}
