"""DreamBooth (Ruiz et al. 2022, arXiv 2208.12242): a rare word for the subject, the U-Net fine-tuned to it.

Space: P, 1 x 1; the word itself is not learned. Pictures of the class, painted by the untouched backbone, keep the
class as it was (prior preservation, eq. 2, weight 1). Paper: the whole U-Net at lr 5e-6 for 1,000 steps on 3-5 pictures
with 1,000 pictures of the class. Ours: low-rank adapters on the attention (lr 1e-4, as common for LoRA) and few class
pictures; the text encoder stays frozen.
"""

from torch import Tensor

from escdiff.backbone import Backbone
from escdiff.backbone.adapters.attached import ATTENTION, LowRank
from escdiff.conditioning import ConditioningSpace
from escdiff.methods.base import Method


class DreamBooth(Method):
    """Adapters under a rare word.

    Args:
        init: word of the class. rare: word that the vocabulary has and nobody uses; stands before the class word.
        rank: of the adapters. prior_weight: of the class's pictures, 0 for none; prior_count: how many.
    """

    def __init__(
        self, backbone: Backbone, init: str = "object", rare: str = "sks", templates="auto", rank: int = 4,
        prior_weight: float = 1.0, prior_count: int = 16,
    ) -> None:  # fmt: skip
        words = f"{rare} {init}"
        count = len(backbone.prompts.word_embedding(words))
        super().__init__(backbone, ConditioningSpace.p(backbone.unet), words, count, templates)
        self.class_word, self.prior_weight, self.prior_count = init, prior_weight, prior_count
        self.register_buffer("anchor_concept", backbone.prompts.word_embedding(words).float(), persistent=False)
        self.use_weights(LowRank(backbone, rank, ATTENTION))

    def class_prompts(self) -> tuple[str, ...]:
        return (self.templates[0].format(self.class_word),) if self.prior_weight else ()

    def vectors(self, batch) -> dict[str, Tensor]:
        return {"concept": self.anchor("concept")[None, None, None]}
