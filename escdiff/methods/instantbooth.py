"""InstantBooth (Shi et al. 2023, arXiv 2304.03411), after the abstract: a word, and gated attention to patches.

There is no official code. A concept encoder makes one word of a picture; gated self-attention in every transformer
block looks at the picture's patches (`escdiff.backbone.adapters.gated`), frozen weights besides. When sampling, the
gate's share `beta` is lowered ("balanced sampling") and the word brought to the norm of words. Theirs: one encoder
per class, 10k pictures of persons or cats. Ours: the pooled patches of a frozen tower through a layer, all families
of Still Life at once, and our own number for `beta`; reference and target are one picture, augmented, as theirs are.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from escdiff.backbone import Backbone
from escdiff.backbone.adapters.attached import SCALE
from escdiff.backbone.adapters.gated import Gated, patches_argument
from escdiff.concept import IMAGE_TOKENS
from escdiff.conditioning import ConditioningSpace
from escdiff.encoder.vision import load_vision
from escdiff.methods.base import at_norm
from escdiff.methods.encoder_method import EncoderMethod, check_depths, foreground, pooled

ZOOM, SHIFT = (0.8, 1.25), 0.1  # of augmented references


class InstantBooth(EncoderMethod):
    """A concept word and gated patches.

    Args:
        vision: see `escdiff.encoder.load_vision`. depth: of the patches.
        init: class word that the concept word starts from.
        beta: share of the gated attention at inference; 1 in training.

    Raises:
        UserError: a depth that the tower lacks.
    """

    few, many = 1, 5

    def __init__(
        self, backbone: Backbone, vision: str = "mini", depth: int = 3, init: str = "object", beta: float = 0.6,
        templates="auto",
    ) -> None:  # fmt: skip
        super().__init__(backbone, ConditioningSpace.p(backbone.unet), init, 1, templates)
        tower = load_vision(vision)
        self._tower, (self.depth,), self.beta = (tower,), check_depths("method.depth", [depth], tower), beta
        self.word = nn.Sequential(nn.LayerNorm(tower.width), nn.Linear(tower.width, backbone.width))
        nn.init.zeros_(self.word[-1].weight)  # start at the class word
        nn.init.zeros_(self.word[-1].bias)
        self.use_weights(Gated(backbone, tower.width))
        self.register_buffer("found", self.anchor("concept").clone(), persistent=False)  # (1, D)
        self.register_buffer("patches", torch.zeros(tower.num_patches, tower.width), persistent=False)

    @torch.no_grad()
    def tokens(self, pixels: Tensor) -> Tensor:
        """Patches (B, N, W)."""
        return self._tower[0].to(pixels.device)(pixels)[self.depth].float()

    def word_vectors(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """(B, 1, D)."""
        scale = self.anchor("concept").norm(dim=-1).mean()
        return self.anchor("concept") + scale * self.word(pooled(tokens, mask))[:, None]

    @torch.no_grad()
    def start(self, pixels: Tensor, masks: Tensor | None = None) -> None:
        device = self.patches.device
        masks = None if masks is None else masks.to(device)
        tokens = self.tokens(pixels.to(device))
        self.found.copy_(at_norm(self.word_vectors(tokens, masks).mean(0), self.anchor("concept")))
        self.patches = foreground(tokens, masks).flatten(0, 1)

    def vectors(self, batch) -> dict[str, Tensor]:
        if "pixels" not in batch:
            return {"concept": self.found[None, None, None]}
        pixels, mask = augmented(batch["pixels"], batch.get("mask"))
        return {"concept": self.word_vectors(self.tokens(pixels), mask)[:, None, None]}

    def added(self, batch) -> dict:
        """Another view than the word's."""
        pixels, mask = augmented(batch["pixels"], batch.get("mask"))
        return {"cross_attention_kwargs": patches_argument(foreground(self.tokens(pixels), mask))}

    def extras(self) -> dict[str, Tensor]:
        return {IMAGE_TOKENS: self.patches.cpu().clone()}

    def concept(self, notes=None):
        return super().concept({SCALE: str(self.beta), **(notes or {})})


def augmented(pixels: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Pictures (B, 3, H, W) and masks (B, 1, H, W), mirrored, zoomed and shifted at random, the rim carried on."""
    count, draw = len(pixels), lambda low, high: torch.empty(len(pixels)).uniform_(low, high)
    zoom, mirror = draw(*ZOOM), (torch.rand(count) < 0.5) * -2.0 + 1
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = mirror / zoom, 1 / zoom
    theta[:, 0, 2], theta[:, 1, 2] = draw(-2 * SHIFT, 2 * SHIFT), draw(-2 * SHIFT, 2 * SHIFT)
    grid = F.affine_grid(theta.to(pixels), list(pixels.shape), align_corners=False)
    moved = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
    if mask is not None:
        mask = F.grid_sample(mask.to(pixels), grid, padding_mode="zeros", align_corners=False)
    return moved, mask
