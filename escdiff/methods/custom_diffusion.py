"""Custom Diffusion (Kumari et al. 2022, arXiv 2212.04488): a word, and the keys and values of cross-attention.

Space: P, 1 x 1. The vector starts from a rare word and stands before the class word, as in the paper's "V* dog";
pictures of the class keep it as it was. Paper: 250 steps at batch 8, lr 8e-5, 200 regularisation pictures retrieved by
their captions; the whole of K and V (75 MB). Ours: low-rank changes of K and V, and pictures that the backbone paints
itself (the paper's variant "Gen"). Several concepts in one prompt: give each its own name, `merge` their adapters by
the paper's constrained least squares (eq. 4 and 5), or add them up as `python infer.py concept=a=FILE,b=FILE` does.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from escdiff.backbone import Backbone
from escdiff.backbone.adapters.attached import CROSS_KV, LowRank
from escdiff.conditioning import ConditioningSpace
from escdiff.methods.base import Method


class CustomDiffusion(Method):
    """One learned vector before the class word, with K and V.

    Args:
        init: word of the class. rare: word that the vector starts from.
        rank: of the change of K and V. prior_weight, prior_count: see `DreamBooth`.
    """

    def __init__(
        self, backbone: Backbone, init: str = "object", rare: str = "ktn", templates="auto", rank: int = 16,
        prior_weight: float = 1.0, prior_count: int = 16,
    ) -> None:  # fmt: skip
        words = torch.cat([backbone.prompts.word_embedding(rare, 1), backbone.prompts.word_embedding(init)]).float()
        super().__init__(backbone, ConditioningSpace.p(backbone.unet), init, len(words), templates)
        self.class_word, self.prior_weight, self.prior_count = init, prior_weight, prior_count
        self.register_buffer("anchor_concept", words, persistent=False)
        self.modifier = nn.Parameter(words[:1].clone())  # (1, D)
        self.use_weights(LowRank(backbone, rank, CROSS_KV))

    def class_prompts(self) -> tuple[str, ...]:
        return (self.templates[0].format(self.class_word),) if self.prior_weight else ()

    def vectors(self, batch) -> dict[str, Tensor]:
        return {"concept": torch.cat([self.modifier, self.anchor("concept")[1:]])[None, None, None]}


def merge(
    weight: Tensor, changes: Sequence[Tensor], targets: Sequence[Tensor], regular: Tensor, ridge: float = 1e-4
) -> Tensor:
    """One weight for several concepts: each concept's words go where its own weight sends them, others stay.

    `argmin ||(W - W0) C_reg||` under `W c = (W0 + dW_i) c` for the text features c of concept i (eq. 4, 5).

    Args:
        weight: W0 (out, D). changes: of each concept, (out, D).
        targets: text features (n_i, D) of each concept's words. regular: (N, D) of ordinary captions.
        ridge: of the captions' second moments, relative to their mean.

    Raises:
        ValueError: changes and targets differ in number.
    """
    if len(changes) != len(targets):
        raise ValueError(f"{len(changes)} changes for {len(targets)} concepts")
    c = torch.cat(list(targets)).double()  # (n, D)
    wanted = torch.cat([t.double() @ d.double().T for t, d in zip(targets, changes, strict=True)])  # (n, out)
    moments = regular.double().T @ regular.double()
    moments += ridge * moments.diagonal().mean() * torch.eye(len(moments), dtype=moments.dtype)
    spread = torch.linalg.solve(moments, c.T)  # (D, n)
    gram = c @ spread
    gram += 1e-9 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    return (weight.double() + (spread @ torch.linalg.solve(gram, wanted)).T).to(weight.dtype)


def changes_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Layer name -> B A of a low-rank adapter's file."""
    names = [key.removesuffix(".lora_A.weight") for key in state if key.endswith(".lora_A.weight")]
    return {name: state[f"{name}.lora_B.weight"] @ state[f"{name}.lora_A.weight"] for name in names}
