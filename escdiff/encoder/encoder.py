"""ConceptEncoder: a reference image (and mask) to a concept, in one forward pass."""

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from escdiff.backbone.family.stored import phrases
from escdiff.concept import ATTRIBUTES, Concept
from escdiff.conditioning import ConditioningSpace
from escdiff.data.colours import alpha_of, to_rgb
from escdiff.data.pictures import to_pixels, visible
from escdiff.encoder import checkpoint
from escdiff.encoder.filters import AppearanceFilter, ShapeFilter
from escdiff.encoder.gates import initial_logits, open_gates
from escdiff.encoder.head import Head
from escdiff.encoder.vision import VisionBackbone
from escdiff.encoder.vocabulary import Vocabulary
from escdiff.support.config.encoder import EncoderConfig
from escdiff.support.config.keys import check
from escdiff.support.errors import UserError


class ConceptEncoder(nn.Module):
    """Two filters over one frozen vision tower, each with its head, anchors and gates.

    The output of attribute a at layer l and stage s is `anchor[a] + gate[a, l, s] * residual[a, l, s]`: a closed
    gate leaves the neutral word. The tower stays outside the module's weights.

    Attributes:
        name: hub id, or name of its folder; empty until it was read from one.
        branches: `escdiff.backbone.branches.Branches` that it was read with, or None.
    """

    def __init__(
        self,
        config: EncoderConfig,
        vision: VisionBackbone,
        space: ConditioningSpace,
        anchors: dict[str, Tensor],
        base_model: str = "",
        text_hash: str = "",
        family: str = "sd",
    ) -> None:
        """Build with random weights.

        Args:
            anchors: attribute -> (K, D), the last of which is taken.
            family: of the backbone, by name.

        Raises:
            UserError: an unknown choice, or depths that the tower lacks.
        """
        super().__init__()
        check(config, "encoder.")
        depths = {*config.shape_depths, *config.appearance_depths}
        if config.words and not vision.embedding_width:
            raise UserError(f"encoder.vocabulary given with the tower {vision.spec}; it needs a whole CLIP model")
        if outside := sorted(depths - set(range(vision.num_depths))):
            what = f"depth {outside[-1]} of the vision tower {vision.spec} asked for, it has 0..{vision.num_depths - 1}"
            raise UserError(f"{what}; change encoder.shape_depths and encoder.appearance_depths")
        self.config, self.space, self.family = config, space, family
        self.base_model, self.text_hash = base_model, text_hash
        self.name, self.branches = "", None  # as it was read, see `escdiff.encoder.checkpoint`
        self._vision = (vision,)  # a tuple hides the frozen tower from nn.Module
        common = {"width": vision.width, "patches": vision.num_patches, "features": config.features}
        self.filters = nn.ModuleDict({
            "shape": ShapeFilter(
                depths=len(config.shape_depths), positions=config.positions,
                instance_norm=config.instance_norm, **common,
            ),
            "appearance": AppearanceFilter(
                depths=len(config.appearance_depths), positions=config.appearance_positions, **common
            ),
        })  # fmt: skip
        layers, stages, width = space.num_layers, space.num_stages, next(iter(anchors.values())).shape[-1]
        read = {
            a: Vocabulary(len(words), vision.embedding_width, config.tokens[a], width)
            for a, words in config.words.items()
        }
        self.heads = nn.ModuleDict({
            a: Head(config.features, layers, stages, config.tokens[a], width, config.rank, read.get(a))
            for a in ATTRIBUTES
        })  # fmt: skip
        # What an attribute says when it is dropped in training: learned, not a picture of zeros.
        self.nulls = nn.ParameterDict({a: nn.Parameter(torch.zeros(config.tokens[a], width)) for a in ATTRIBUTES})
        self.gate_logits = nn.ParameterDict(
            {a: nn.Parameter(initial_logits(a, layers, stages), config.gates == "learned") for a in ATTRIBUTES}
        )
        for attribute in ATTRIBUTES:
            anchor = anchors[attribute].detach().float() * config.residual_anchor
            self.register_buffer(f"anchor_{attribute}", anchor[-1:].expand(config.tokens[attribute], -1).clone())
        self.register_buffer("embedding_scale", _mean_norm(anchors.values()) * config.residual_scale)

    @classmethod
    def for_backbone(cls, config: EncoderConfig, vision: VisionBackbone, backbone, space: ConditioningSpace):
        """A new encoder for a backbone: anchors and scale come from its words."""
        if config.words and backbone.family.reading is not None:
            given = f"encoder.vocabulary given for {backbone.name!r} of the family {backbone.family.name!r}"
            raise UserError(f"{given}; the vectors of a transformer are no words: leave it empty")
        anchors = {a: backbone.prompts.word_embedding(word) for a, word in config.anchors.items()}
        encoder = cls(config, vision, space, anchors, backbone.name, backbone.text_hash, backbone.family.name)
        for attribute, words in config.words.items():
            anchor = encoder.anchor(attribute)
            vectors = torch.stack([backbone.prompts.spread(word, len(anchor)) for word in words]).detach().to(anchor)
            vectors = (vectors - anchor) / encoder.embedding_scale
            encoder.heads[attribute].vocabulary.set(vision.spec, words, config.templates, vectors)
        return encoder

    @property
    def word_scale(self) -> Tensor:
        """Mean norm of the anchors: the scale of real words."""
        return self.embedding_scale / self.config.residual_scale

    @property
    def vision(self) -> VisionBackbone:
        return self._vision[0]

    def to(self, *args: Any, **kwargs: Any) -> "ConceptEncoder":
        """As of `nn.Module`; the tower, which is no child, goes to the same device and keeps its type."""
        super().to(*args, **kwargs)
        self.vision.to(self.embedding_scale.device)
        return self

    def anchor(self, attribute: str) -> Tensor:
        """(K, D)."""
        return getattr(self, f"anchor_{attribute}")

    def gates(self) -> dict[str, Tensor]:
        """Attribute -> (L, S) in 0..1."""
        return {a: open_gates(logits, self.config.gates) for a, logits in self.gate_logits.items()}

    def tokens(self, pixels: Tensor) -> list[Tensor]:
        """The frozen tower's patch tokens by depth, then its embedding if words are read off it; no gradients."""
        with torch.no_grad():
            return self.vision(pixels, embed=bool(self.config.words))

    def features(self, attribute: str, tokens_BNW: list[Tensor], mask: Tensor | None = None) -> Tensor:
        """What an attribute's filter lets through, (B, F), then the shares of the words that CLIP reads, (B, V)."""
        depths, vocabulary = getattr(self.config, f"{attribute}_depths"), self.heads[attribute].vocabulary
        features = self.filters[attribute]([tokens_BNW[d].float() for d in depths], mask)
        if vocabulary is None:
            return features
        return torch.cat([features, vocabulary.read(tokens_BNW[-1][:, 0].float())], 1)

    def residuals(self, attribute: str, features: Tensor, dropped: Tensor | None = None) -> Tensor:
        """(B, F) -> what is added to the anchor before the gate, (B, L, S, K, D); dropped (B,) bool gives the null."""
        residual = self.heads[attribute](features)
        if dropped is not None:
            null = self.nulls[attribute].expand_as(residual)
            residual = torch.where(dropped[:, None, None, None, None], null, residual)
        return residual * self.embedding_scale

    def vectors(self, attribute: str, residuals: Tensor) -> Tensor:
        """Anchor plus gated residual (B, L, S, K, D)."""
        return self.anchor(attribute) + self.gates()[attribute][..., None, None] * residuals

    def forward(
        self,
        shape_pixels: Tensor | None = None,
        appearance_pixels: Tensor | None = None,
        shape_mask: Tensor | None = None,
        appearance_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Pixels (B, 3, H, W) in [-1, 1] per attribute, masks (B, 1, H, W) -> attribute -> (B, L, S, K, D).

        The tower runs once: on one batch if both attributes come from the same tensor, else on both together.
        """
        given = {"shape": (shape_pixels, shape_mask), "appearance": (appearance_pixels, appearance_mask)}
        given = {a: pair for a, pair in given.items() if pair[0] is not None}
        if not given:
            raise UserError("no reference image given; expected one for the shape, the appearance or both")
        tokens = self.tokens_of({a: pixels for a, (pixels, _) in given.items()})
        return {
            a: self.vectors(a, self.residuals(a, self.features(a, tokens[a], mask))) for a, (_, mask) in given.items()
        }

    def tokens_of(self, pixels: dict[str, Tensor]) -> dict[str, list[Tensor]]:
        """Attribute -> pixels to attribute -> tokens by depth, in one call of the tower."""
        unique = list({id(p): p for p in pixels.values()}.values())
        if len(unique) > 1 and len({p.shape[-2:] for p in unique}) > 1:
            return {a: self.tokens(p) for a, p in pixels.items()}
        parts = [t.split([len(p) for p in unique]) for t in self.tokens(torch.cat(unique))]
        place = {id(p): i for i, p in enumerate(unique)}
        return {a: [depth[place[id(p)]] for depth in parts] for a, p in pixels.items()}

    @torch.no_grad()
    def encode(
        self,
        image: Image.Image | Tensor,
        mask: Tensor | None = None,
        attributes: Collection[str] = ATTRIBUTES,
        note: str = "",
    ) -> Concept:
        """One picture to a concept in one forward pass.

        Args:
            image: PIL of any mode, or pixels (3, H, W) in [-1, 1].
            mask: (1, H, W), 1 on the object; without it the transparency of a PIL picture, if it has any.

        Raises:
            UserError: an unknown attribute.
        """
        unknown = set(attributes) - set(ATTRIBUTES)
        if unknown or not attributes:
            raise UserError(f"attributes {sorted(attributes)} given; expected some of {', '.join(ATTRIBUTES)}")
        pixels, size = image, self.vision.image_size
        if isinstance(image, Image.Image):
            pixels, alpha = to_pixels(to_rgb(image), size), alpha_of(image)
            if mask is None and alpha is not None:
                mask = visible(alpha, size)
        pixels = pixels[None].to(self.embedding_scale.device)
        mask = None if mask is None else mask[None].to(pixels)
        given = {f"{a}_pixels": pixels for a in attributes} | {f"{a}_mask": mask for a in attributes}
        return self.concept({a: value[0] for a, value in self(**given).items()}, {"reference": note} if note else {})

    def concept(self, vectors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None) -> Concept:
        """A concept of vectors (L, S, K, D) by attribute, on the CPU."""
        gates, words = self.gates(), phrases(self.family, self.config.anchors, vectors)
        return Concept(
            vectors={a: value.float().cpu() for a, value in vectors.items()},
            anchors={a: self.anchor(a).float().cpu() for a in vectors},
            space=self.space, base_model=self.base_model, text_hash=self.text_hash,
            gates={a: gates[a].float().cpu() for a in vectors}, notes=dict(notes or {}),
            branches=self.needed_branches, family=self.family, words=words,
        )  # fmt: skip

    @property
    def needed_branches(self) -> dict[str, str]:
        """What its concepts say about them, see `Concept.branches`; the hash is empty while they are being trained."""
        if not self.config.branch_names:
            return {}
        return {"encoder": self.name, "hash": self.branches.hash if self.branches else ""}

    def save_pretrained(self, folder: str | Path, unet: nn.Module | None = None, card: str = "") -> None:
        """Write a checkpoint folder; see `escdiff.encoder.checkpoint`.

        Args:
            unet: with the branches, if they were trained in it; without, those that the encoder was read with.
        """
        checkpoint.save(self, Path(folder), unet, card)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path | None = None, backbone=None, vision: str | None = None, **hub: Any
    ) -> "ConceptEncoder":
        """Read a checkpoint folder, one of the Hugging Face hub, or the bundled encoder.

        Args:
            folder: or "USER/NAME" on the hub.
            backbone: refuse one that it was not made for; its U-Net gets the branches.
            vision: where the vision tower lies on this machine, see `load_vision`.
            hub: `revision`, `cache_dir`, `token`, `local_files_only`.

        Raises:
            UserError: see `escdiff.encoder.checkpoint.load`.
        """
        return checkpoint.load(cls, folder, backbone, vision, **hub)


def _mean_norm(vectors: Iterable[Tensor]) -> Tensor:
    return torch.stack([v.detach().float().norm(dim=-1).mean() for v in vectors]).mean()
