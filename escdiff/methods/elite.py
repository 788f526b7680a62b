"""ELITE (Wei et al. 2023, arXiv 2302.13848): a picture as several words, and its patches as extra keys and values.

Space: P, 1 x 1, one word per depth of CLIP (global, section 3.1); patch features within the object's mask beside the
text (local, section 3.2), by IP-Adapter's decoupled attention in diffusers. Theirs: depths last, 4, 8, 12, 16 of
CLIP-L, three-layer mappers, L1 of 0.01 on the words, trained K and V, lambda 0.8, global then local stage, the latter
with the primary word alone. Ours: mean patch features for the class token, low-rank K and V, both stages at once (a
random half of the samples has only the primary word), no L1 on the local values.
"""

import torch
from torch import Tensor, nn

from escdiff.backbone import Backbone
from escdiff.backbone.adapters.attached import CROSS_KV, SCALE, ImageAttention, LowRank
from escdiff.concept import IMAGE_TOKENS
from escdiff.conditioning import ConditioningSpace
from escdiff.encoder.vision import load_vision
from escdiff.methods.encoder_method import EncoderMethod, check_depths, foreground, pooled


class ELITE(EncoderMethod):
    """Global and local mapping.

    Args:
        vision: see `escdiff.encoder.load_vision`. depths: of the words, the primary one (the deepest) first.
        init: word that the words start from.
        rank: of the change of K and V. words_l1: weight of the words' distance from `init`, in units of its norm.
        scale: of the local attention, lambda.

    Raises:
        UserError: depths that the tower lacks.
    """

    few, many = 1, 1

    def __init__(
        self, backbone: Backbone, vision: str = "mini", depths=(3, 0, 1, 2), init: str = "object", rank: int = 8,
        words_l1: float = 0.01, scale: float = 0.8, templates="auto",
    ) -> None:  # fmt: skip
        super().__init__(backbone, ConditioningSpace.p(backbone.unet), init, len(depths), templates)
        tower = load_vision(vision)
        self._tower, self.words_l1, self.scale = (tower,), words_l1, scale
        self.depths = check_depths("method.depths", depths, tower)
        width = backbone.width
        self.mappers = nn.ModuleList(_mapper(tower.width, width) for _ in self.depths)
        projection = {
            "proj.0.weight": torch.randn(tower.width, tower.width) * tower.width**-0.5,
            "proj.0.bias": torch.zeros(tower.width),
            "proj.2.weight": torch.randn(width, tower.width) * tower.width**-0.5, "proj.2.bias": torch.zeros(width),
            "proj.3.weight": torch.ones(width), "proj.3.bias": torch.zeros(width),
        }  # fmt: skip
        self.use_weights(LowRank(backbone, rank, CROSS_KV))
        self.use_weights(ImageAttention(backbone, projection))
        self.register_buffer("words_found", self.anchor("concept").clone(), persistent=False)  # (K, D)
        self.register_buffer("patches", torch.zeros(tower.num_patches, tower.width), persistent=False)

    @torch.no_grad()
    def tokens(self, pixels: Tensor) -> list[Tensor]:
        return self._tower[0].to(pixels.device)(pixels)

    def map(self, tokens: list[Tensor], mask: Tensor | None) -> Tensor:
        """Words (B, K, D) of patch tokens by depth."""
        scale = self.anchor("concept").norm(dim=-1).mean()
        words = [mapper(pooled(tokens[d], mask)) for mapper, d in zip(self.mappers, self.depths, strict=True)]
        return self.anchor("concept") + scale * torch.stack(words, 1)

    @torch.no_grad()
    def start(self, pixels: Tensor, masks: Tensor | None = None) -> None:
        tokens = self.tokens(pixels.to(self.patches.device))
        self.words_found.copy_(self.map(tokens, masks)[0])
        self.patches.copy_(foreground(tokens[self.depths[0]], masks)[0])

    def vectors(self, batch) -> dict[str, Tensor]:
        if "pixels" not in batch:
            return {"concept": self.words_found[None, None, None]}
        words = self.map(self.tokens(batch["pixels"]), batch.get("mask"))
        alone = torch.rand(len(words), 1, 1, device=words.device) < 0.5
        rest = torch.arange(words.shape[1], device=words.device)[:, None] > 0
        words = torch.where(alone & rest, self.anchor("concept"), words)
        return {"concept": words[:, None, None]}

    def added(self, batch) -> dict:
        patches = foreground(self.tokens(batch["pixels"])[self.depths[0]], batch.get("mask"))
        return {"added_cond_kwargs": {"image_embeds": [patches[:, None]]}}

    def regularizers(self, vectors) -> dict[str, Tensor]:
        away = (vectors["concept"] - self.anchor("concept")).abs().sum(-1).mean()
        return {"words": self.words_l1 * away / self.anchor("concept").abs().sum(-1).mean()}

    def extras(self) -> dict[str, Tensor]:
        return {IMAGE_TOKENS: self.patches.cpu().clone()}

    def concept(self, notes=None):
        return super().concept({SCALE: str(self.scale), **(notes or {})})


def _mapper(before: int, after: int) -> nn.Sequential:
    middle = 2 * after
    mapper = nn.Sequential(
        nn.LayerNorm(before), nn.Linear(before, middle), nn.LayerNorm(middle), nn.LeakyReLU(),
        nn.Linear(middle, middle), nn.LayerNorm(middle), nn.LeakyReLU(), nn.Linear(middle, after),
    )  # fmt: skip
    nn.init.normal_(mapper[-1].weight, std=0.1 * (middle * after) ** -0.5)
    nn.init.zeros_(mapper[-1].bias)
    return mapper
