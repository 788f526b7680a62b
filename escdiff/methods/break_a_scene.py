"""Break-A-Scene (Avrahami et al. 2023, arXiv 2305.16311): several things of one picture, each a word by its mask.

Space: P, 1 x 1, a word per mask. Every step names a random subset of the things ("union sampling"); its error counts
within their masks, and the words' attention is to look like the masks. The words alone are trained first, then the
weights with them. Paper: SD 2.1, batch 1, 400 steps at 5e-4 and 400 at 2e-6 of the whole U-Net and text encoder,
attention weight 0.01; its code keeps 100 pictures of "a photo at the beach" as they were. Ours: low-rank adapters in
the second phase, the text encoder frozen; 16 such pictures.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from escdiff.backbone import Backbone
from escdiff.backbone.adapters.attached import ATTENTION, LowRank
from escdiff.concept import placeholder
from escdiff.conditioning import ConditioningSpace
from escdiff.conditioning.attention import layers_at
from escdiff.control.objectives import follow
from escdiff.methods import losses
from escdiff.methods.base import Method, Phase, at_norm
from escdiff.support.errors import UserError


class BreakAScene(Method):
    """`<asset0>`, `<asset1>` and so on, in the order of the picture's masks.

    Args:
        init: word to start from, of each thing.
        attention: weight of the attention loss.
        by_area: divide the error by the masks' area, so that small things count alike; the paper does not.
        first: share of the steps that train the words alone. second_lr: learning rate of all in the others.
        rank: of the adapters. prior: what the class's pictures show; prior_weight, prior_count: see `DreamBooth`.

    Raises:
        UserError: no word, or a share beyond the whole.
    """

    many = 1
    needs = ("masks",)

    def __init__(
        self, backbone: Backbone, init: Sequence[str] = ("object", "object"), vectors: int = 1, templates="auto",
        keep_norm: bool = True, attention: float = 0.01, by_area: bool = False, first: float = 0.5,
        second_lr: float = 1e-4, rank: int = 16, prior: str = "a photo at the beach", prior_weight: float = 1.0,
        prior_count: int = 16,
    ) -> None:  # fmt: skip
        words = {f"asset{number}": word for number, word in enumerate([init] if isinstance(init, str) else init)}
        if not words:
            raise UserError("method.init is empty; expected a word for every mask, such as [mug,chair]")
        if not 0 <= first <= 1:
            raise UserError(f"method.first={first} given; expected a share of the steps from 0 to 1")
        super().__init__(backbone, ConditioningSpace.p(backbone.unet), words, vectors, templates)
        self.keep_norm, self.attention, self.by_area = keep_norm, attention, by_area
        self.first, self.second_lr = first, second_lr
        self.prior, self.prior_weight, self.prior_count = prior, prior_weight, prior_count
        self.tables = nn.ParameterDict({name: nn.Parameter(self.anchor(name).clone()) for name in words})  # (K, D)
        self.use_weights(LowRank(backbone, rank, ATTENTION))

    def class_prompts(self) -> tuple[str, ...]:
        return (self.prior,) if self.prior_weight else ()

    def start(self, pixels: Tensor, masks: Tensor | None = None) -> None:
        if masks.shape[1] != len(self.attributes):
            what = f"the picture has {masks.shape[1]} masks, and method.init {len(self.attributes)} words"
            raise UserError(f"{what}; expected one word for every mask")

    def prompt(self, rng: np.random.Generator) -> str:
        """A template with some of the things, in any order."""
        template = self.templates[rng.integers(len(self.templates))]
        count = len(self.attributes)
        chosen = rng.choice(count, rng.integers(1, count + 1), replace=False)
        return template.format(" and a ".join(placeholder(self.attributes[i]) for i in chosen))

    def phases(self, lr: float) -> list[Phase]:
        words = list(self.tables.values())
        return [Phase(self.first, lr, words), Phase(1 - self.first, self.second_lr, [*words, *self.kept])]

    def watch(self) -> Sequence[str]:
        return layers_at(self.backbone.unet) if self.attention else ()

    def vectors(self, batch) -> dict[str, Tensor]:
        found = {name: self.tables[name] for name in self.attributes}
        if self.keep_norm:
            found = {name: at_norm(table, self.anchor(name)) for name, table in found.items()}
        return {name: table[None, None, None] for name, table in found.items()}

    def losses(self, output, target, vectors, batch) -> dict[str, Tensor]:
        slots_BAT, masks_BAHW = self.slots(batch["texts"], vectors), batch["masks"].to(output)
        named_BA = slots_BAT.amax(-1)
        terms = {"denoising": self.masked_error(output, target, masks_BAHW, named_BA, batch.get("weight"))}
        if self.attention:
            maps_BhwT = batch["maps"].average().to(slots_BAT)
            maps_BAhw = torch.einsum("bhwt,bat->bahw", maps_BhwT, slots_BAT) / self.num_vectors
            terms["attention"] = self.attention * attention_loss(maps_BAhw, masks_BAHW, named_BA)
        return terms

    def masked_error(
        self, output: Tensor, target: Tensor, masks_BAHW: Tensor, named_BA: Tensor, weight: Tensor | None
    ) -> Tensor:
        """The denoising error within the masks of what the prompt names; everywhere where it names nothing."""
        union = (masks_BAHW * named_BA[..., None, None]).amax(1, keepdim=True)
        union = torch.where(named_BA.any(1)[:, None, None, None], union, 1.0)
        union = interpolate(union, output.shape[-2:])  # nearest, as in the paper's code
        if self.by_area:
            return losses.denoising(output, target, weight, union)
        return losses.denoising(output * union, target * union, weight)


def attention_loss(maps_BAhw: Tensor, masks_BAHW: Tensor, named_BA: Tensor) -> Tensor:
    """Sum over the things that a prompt names, mean over the prompts that name any."""
    masks = interpolate(masks_BAHW, maps_BAhw.shape[-2:])
    each = [follow(maps_BAhw[:, i, None], masks[:, i, None]) for i in range(masks.shape[1])]
    return (torch.stack(each, 1) * named_BA).sum() / named_BA.any(1).sum()
