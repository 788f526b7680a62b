"""What every customization method shares. A method adds its space, its parameters and its losses.

Legend: B batch, L layer cell, S stage, K vectors per attribute, D width of the text encoder.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from escdiff.backbone import mini_folder
from escdiff.backbone.adapters.attached import ADAPTER
from escdiff.backbone.family.stored import phrases
from escdiff.backbone.frozen import Frozen
from escdiff.backbone.weights import Weights
from escdiff.concept import WHOLE, Concept, mask_slots, placeholder
from escdiff.conditioning import ConditioningSpace
from escdiff.methods import losses
from escdiff.support.errors import UserError

# In the manner of the prompts that CLIP was tested with, as Textual Inversion (arXiv 2208.01618, section 4) takes them.
CLIP_TEMPLATES = (
    "a photo of a {}", "a rendering of a {}", "a cropped photo of the {}", "the photo of a {}", "a photo of one {}",
    "a close-up photo of a {}", "a bright photo of the {}", "a good photo of the {}", "a depiction of a {}",
)  # fmt: skip
# The bundled model knows the words of its own captions only.
MINI_TEMPLATES = ("a photo of a {}", "a picture of a {}", "a render of a {}", "a {}")
CONCEPT = "concept.safetensors"
Batch = Mapping[str, Any]


class Phase(NamedTuple):
    """A part of a training.

    Attributes:
        share: of all steps. lr: learning rate. parameters: what is trained; all else rests.
    """

    share: float
    lr: float
    parameters: Sequence[nn.Parameter]


class Method(nn.Module):
    """A way to fill a conditioning space from references, over a frozen backbone.

    A subclass registers its trainable parameters as any module does and says in `vectors` what the placeholders
    stand for; `regularizers` and `losses` where it has its own. `escdiff.training.method.module` optimises all of them
    in the same way.

    Attributes:
        space: the cells that it fills.
        attributes: names of its placeholders.
        few, many: how many references it takes.
        needs: what must lie beside each of them, of `escdiff.training.method.references.BESIDE`.
        copies: equal parts of a batch that share noise and timesteps, for losses that compare samples.
        shared_stage: draw one stage per step rather than one per sample, which costs S times less text encoding.
        encodes: whether it learns an encoder from a data set before it sees a reference.
        learns: what that data set shows: "scenes" or "faces" with a reference of each thing, else single objects.
        weights: what it changes in the U-Net.
        prior_weight, prior_count: of the pictures of `class_prompts`, and how many are painted.
    """

    few, many = 1, 5
    needs: tuple[str, ...] = ()
    copies = 1
    shared_stage = False
    encodes = False
    learns = ""
    prior_weight, prior_count = 1.0, 16

    def __init__(
        self, backbone: Frozen, space: ConditioningSpace, words: Mapping[str, str] | str = "object",
        vectors: int = 1, templates: str | Sequence[str] = "auto",
    ) -> None:  # fmt: skip
        """Keep the backbone outside the module and the initial words as anchors.

        Args:
            words: attribute -> ordinary word or phrase to start from; a text alone is for the attribute `concept`.
            vectors: K.
            templates: "clip", "mini", "auto" (by the backbone), or texts with {} where the placeholders go.

        Raises:
            UserError: a word without token, or templates that have no {}.
        """
        super().__init__()
        self._frozen = (backbone,)  # a tuple hides it from nn.Module
        self.space, self.num_vectors = space, vectors
        words = {WHOLE: words} if isinstance(words, str) else dict(words)
        self.words, self.attributes = words, tuple(words)
        for attribute, word in words.items():
            anchor = backbone.prompts.word_embedding(word, vectors).float()
            self.register_buffer(f"anchor_{attribute}", anchor, persistent=False)
        self.templates = _templates(templates, backbone)
        self.weights: list[Weights] = []
        self.kept = nn.ParameterList()  # of the U-Net, where a method trains some of it

    @property
    def backbone(self) -> Frozen:
        return self._frozen[0]

    def anchor(self, attribute: str) -> Tensor:
        """(K, D)."""
        return getattr(self, f"anchor_{attribute}")

    @property
    def phrase(self) -> str:
        """The placeholders as they stand in a prompt."""
        return " ".join(placeholder(attribute) for attribute in self.attributes)

    def prompt(self, rng: np.random.Generator) -> str:
        """A training prompt."""
        return self.templates[rng.integers(len(self.templates))].format(self.phrase)

    def class_prompts(self) -> tuple[str, ...]:
        """Prompts whose pictures the backbone is to keep (prior preservation); none without."""
        return ()

    def use_weights(self, weights: Weights) -> None:
        """Train these weights of the U-Net along with the method's own parameters."""
        self.weights.append(weights)
        self.kept.extend(weights.parameters())

    def start(self, pixels: Tensor, masks: Tensor | None = None) -> None:
        """Look at the references (N, 3, H, W) in [-1, 1] once, before the first step. Nothing by default.

        Args:
            masks: (N, 1, H, W), 1 on the object, or, of a method that needs masks, (N, M, H, W), 1 on each of M
                objects; None where not all references have them.
        """

    def rows(self, rng: np.random.Generator, count: int, size: int) -> np.ndarray:
        """Which of `count` references make a batch: `size` times any of them, or what a method compares.

        Mirrored ones count as others. Where the method needs a counterpart of every reference, these are the second
        half, in the same order.
        """
        return rng.integers(count, size=size)

    def phases(self, lr: float) -> list[Phase]:
        """What is trained when, and how fast; all of it from beginning to end by default."""
        return [Phase(1.0, lr, [p for p in self.parameters() if p.requires_grad])]

    def timestep_density(self, bias: float) -> float | Tensor:
        """Which timesteps a step draws: a power of t (`loss.high_noise_bias`), or (1000,) weights of its own."""
        return bias

    def watch(self) -> Sequence[str]:
        """Names of the cross-attention layers whose maps the losses read in `batch["maps"]`; none by default."""
        return ()

    def texts(self, prompts: Sequence[str]) -> list[str]:
        """A data set's prompts with this method's placeholders."""
        return list(prompts)

    def vectors(self, batch: Batch) -> dict[str, Tensor]:
        """Attribute -> (B|1, L|1, S|1, K, D), with gradients.

        Args:
            batch: "pixels" (B, 3, H, W), "noisy" (B, C, h, w) and "timesteps" (B,); empty for the concept itself.
        """
        raise NotImplementedError

    def fused(self, grid: Tensor, batch: Batch) -> Tensor:
        """The conditioning (B, L|1, T, D) with what the method puts in behind the text encoder; nothing by default.

        Args:
            batch: see `added`.
        """
        return grid

    def added(self, batch: Batch) -> dict[str, Any]:
        """Further arguments of the U-Net, such as `added_cond_kwargs`.

        Args:
            batch: see `vectors`; with "texts", what `texts` made of its prompts.
        """
        return {}

    def regularizers(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weighted terms on the vectors; none by default."""
        return {}

    def losses(self, output: Tensor, target: Tensor, vectors: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Weighted terms of a step: the denoising error (arXiv 2112.10752, eq. 3) and the regularizers.

        Args:
            batch: what `vectors` sees, "texts", and "weight" (B,) of each sample where not all count alike. "maps" are
                the `escdiff.control.maps.AttentionMaps` of the layers that `watch` names, gradients included; "masks"
                (B, M, H, W) are the references' where the method needs them, zero for pictures of the class.
        """
        return {"denoising": losses.denoising(output, target, batch.get("weight")), **self.regularizers(vectors)}

    def slots(self, texts: Sequence[str], vectors: Mapping[str, Tensor]) -> Tensor:
        """(B, A, T): 1 at the token positions of each attribute's vectors in every text."""
        parts = {placeholder(a): [(a, vectors[a].shape[3])] for a in self.attributes}
        counts = {name: size for name, ((_, size),) in parts.items()}
        prompts = self.backbone.prompts
        found = [prompts.tokenize(text, counts).slots for text in texts]
        return mask_slots(found, parts, prompts.max_length, self.attributes).to(self.backbone.device)

    def rate(self, lr: float, references: int) -> float:
        """The learning rate for so many references."""
        return lr

    @torch.no_grad()
    def concept(self, notes: Mapping[str, str] | None = None) -> Concept:
        """What was learned, on the CPU."""
        training = self.training
        self.eval()
        found, size = self.vectors({}), (self.space.num_layers, self.space.num_stages)
        self.train(training)
        backbone = self.backbone
        about = {"method": type(self).__name__, **({"adapter": ADAPTER} if self.weights else {})}
        return Concept(
            vectors={a: v[0].float().cpu().expand(*size, -1, -1).clone() for a, v in found.items()},
            anchors={a: self.anchor(a).float().cpu() for a in found},
            space=self.space, base_model=backbone.name, text_hash=backbone.text_hash,
            notes={**about, **(notes or {})}, extras=self.extras(),
            family=backbone.family.name, words=phrases(backbone.family.name, self.words, found), entry=backbone.entry,
        )  # fmt: skip

    def extras(self) -> dict[str, Tensor]:
        """What a concept holds besides word vectors, such as image tokens."""
        return {}

    def export(self, folder: Path, notes: Mapping[str, str] | None = None) -> None:
        """Write the concept and, where weights changed, the adapter's folder beside it."""
        self.concept(notes).save(folder / CONCEPT)
        for weights in self.weights:
            weights.save(folder / ADAPTER)

    def release(self) -> None:
        """Take what the method put into the backbone out again; export first."""
        while self.weights:
            self.weights.pop().remove()

    def changed(self) -> int:
        """Number of parameters that customizing changes."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)


def at_norm(vectors: Tensor, like: Tensor) -> Tensor:
    """Vectors (..., K, D) at the norms of others (K, D)."""
    return vectors * (like.norm(dim=-1, keepdim=True) / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-8))


def check_layers(name: str, layers: Sequence[int], space: ConditioningSpace) -> None:
    """Refuse layer numbers that the backbone does not have.

    Raises:
        UserError: naming the first one.
    """
    wrong = [layer for layer in layers if not 0 <= layer < space.num_layers]
    if wrong:
        raise UserError(f"{name} names layer {wrong[0]}; expected 0 to {space.num_layers - 1} for this backbone")


def is_mini(backbone: Frozen) -> bool:
    """Whether it is the bundled model, which knows the words of its own captions only."""
    return backbone.name in ("mini", str(mini_folder()))


def _templates(given: str | Sequence[str], backbone: Frozen) -> tuple[str, ...]:
    if given == "auto":
        given = "mini" if is_mini(backbone) else "clip"
    named = {"clip": CLIP_TEMPLATES, "mini": MINI_TEMPLATES}
    found = tuple(named.get(given, (given,)) if isinstance(given, str) else given)
    if not found or not all("{}" in text for text in found):
        raise UserError(f"method.templates={given!r} given; expected auto, clip, mini or texts that hold {{}}")
    return found
