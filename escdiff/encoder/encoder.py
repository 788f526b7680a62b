"""ConceptEncoder: a reference image (and mask) to a concept, in one forward pass."""

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from escdiff.concept import ATTRIBUTES, Concept
from escdiff.conditioning import ConditioningSpace
from escdiff.conditioning.placement import PLACEMENTS, place
from escdiff.data.images import to_pixels
from escdiff.encoder.filters import AppearanceFilter, ShapeFilter
from escdiff.encoder.vision import VisionBackbone
from escdiff.encoder.vocabulary import Vocabulary
from escdiff.errors import UserError
from escdiff.mixing import SHAPE_LAYERS

GATES = ("learned", "hand", "none")
BRANCHES = ("lora", "routed")


@dataclass(frozen=True)
class EncoderConfig:
    """What a checkpoint needs to be built again; plain values only."""

    vision: str = "mini"  # see escdiff.encoder.vision.load_vision
    shape_depths: tuple[int, ...] = (1, 2, 3)  # which depths of the tower each filter reads
    appearance_depths: tuple[int, ...] = (0, 1, 3)
    tokens: dict[str, int] = field(default_factory=lambda: {"shape": 2, "appearance": 6})  # K per attribute
    anchors: dict[str, str] = field(default_factory=lambda: {"shape": "object", "appearance": "colored"})
    vocabulary: dict[str, list[str]] = field(default_factory=dict)  # words that the tower's CLIP may read
    templates: tuple[str, ...] = ("a photo of a {}",)  # that it reads them in
    features: int = 256  # F of each filter
    rank: int = 8  # of what a layer adds to the base
    residual_anchor: bool = True  # vectors depart from the anchor words, not from zero
    residual_scale: float = 1.0  # in units of the norm of a real word's embedding, or of its hidden states
    placement: str = "words"  # or "states": residuals are added to the anchor words' hidden states
    gates: str = "learned"  # or "hand": SHAPE_LAYERS to shape and the rest to appearance; or "none": all open
    positions: bool = True  # in the shape filter
    appearance_positions: bool = False
    instance_norm: bool = True  # in the shape filter
    branch_rank: int = 0  # of the U-Net branches; 0 for none
    branches: str = "lora"  # act on every token; or "routed": each on the tokens of its own placeholder

    def __post_init__(self) -> None:
        given = {attribute: list(words) for attribute, words in self.vocabulary.items()}
        object.__setattr__(self, "vocabulary", {attribute: [] for attribute in ATTRIBUTES} | given)

    @property
    def words(self) -> dict[str, list[str]]:
        """The vocabularies that are not empty."""
        return {attribute: words for attribute, words in self.vocabulary.items() if words}


class Head(nn.Module):
    """Features to residual word embeddings: `base + layer[l] + stage[s]`, the latter two of low rank.

    With a vocabulary the last of the features are the shares of its words, whose mixture is added.
    """

    def __init__(
        self, features: int, layers: int, stages: int, tokens: int, width: int, rank: int,
        vocabulary: Vocabulary | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.shape, self.features, self.vocabulary = (tokens, width), features, vocabulary
        self.base = nn.Sequential(nn.Linear(features, 2 * features), nn.GELU(), nn.Linear(2 * features, tokens * width))
        self.codes = nn.Linear(features, rank)
        self.layer = nn.Parameter(torch.randn(layers, rank, tokens * width) * 0.1 * (rank * width) ** -0.5)
        self.stage = nn.Parameter(torch.zeros(stages, rank, tokens * width)) if stages > 1 else None
        nn.init.normal_(self.base[-1].weight, std=0.5 * (2 * features * width) ** -0.5)

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) or (B, F + V) -> (B, L, S, K, D), in units of the encoder's `embedding_scale`."""
        features, shares = features[:, : self.features], features[:, self.features :]
        codes = self.codes(features)
        out = self.base(features)[:, None, None] + torch.einsum("br,lrk->blk", codes, self.layer)[:, :, None]
        if self.stage is not None:
            out = out + torch.einsum("br,srk->bsk", codes, self.stage)[:, None]
        out = out.unflatten(-1, self.shape)
        return out if self.vocabulary is None else out + self.vocabulary(shares)[:, None, None]


class ConceptEncoder(nn.Module):
    """Two filters over one frozen vision tower, each with its head, anchors and gates.

    The output of attribute a at layer l and stage s is `anchor[a] + gate[a, l, s] * residual[a, l, s]`: a closed
    gate leaves the neutral word. The tower stays outside the module's weights.
    """

    def __init__(
        self,
        config: EncoderConfig,
        vision: VisionBackbone,
        space: ConditioningSpace,
        anchors: dict[str, Tensor],
        base_model: str = "",
        text_hash: str = "",
        scale: Tensor | None = None,
    ) -> None:
        """Build with random weights.

        Args:
            anchors: attribute -> (K, D), the last of which is taken.
            scale: what residuals are measured in; without, the anchors' mean norm.

        Raises:
            UserError: an unknown choice, or depths that the tower lacks.
        """
        super().__init__()
        for name, choices in (("gates", GATES), ("placement", PLACEMENTS), ("branches", BRANCHES)):
            if (given := getattr(config, name)) not in choices:
                raise UserError(f"encoder.{name}={given!r} given; expected one of {', '.join(choices)}")
        depths = {*config.shape_depths, *config.appearance_depths}
        if unknown := set(config.vocabulary) - set(ATTRIBUTES):
            raise UserError(f"encoder.vocabulary.{min(unknown)} given; expected words for {' or '.join(ATTRIBUTES)}")
        if config.words and (config.placement != "words" or not vision.embedding_width):
            what = f"encoder.vocabulary given with placement {config.placement!r} and the tower {vision.spec}"
            raise UserError(f"{what}; it needs encoder.placement=words and a whole CLIP model")
        if outside := sorted(depths - set(range(vision.num_depths))):
            what = f"depth {outside[-1]} of the vision tower {vision.spec} asked for, it has 0..{vision.num_depths - 1}"
            raise UserError(f"{what}; change encoder.shape_depths and encoder.appearance_depths")
        self.config, self.space, self.base_model, self.text_hash = config, space, base_model, text_hash
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
            {a: nn.Parameter(_gate_logits(a, layers, stages), config.gates == "learned") for a in ATTRIBUTES}
        )
        for attribute in ATTRIBUTES:
            anchor = anchors[attribute].detach().float() * config.residual_anchor
            self.register_buffer(f"anchor_{attribute}", anchor[-1:].expand(config.tokens[attribute], -1).clone())
        scale = _mean_norm(anchors.values()) if scale is None else scale
        self.register_buffer("embedding_scale", scale * config.residual_scale)

    @classmethod
    def for_backbone(cls, config: EncoderConfig, vision: VisionBackbone, backbone, space: ConditioningSpace):
        """A new encoder for a backbone: anchors and scale come from its words."""
        anchors = {a: backbone.prompts.word_embedding(word) for a, word in config.anchors.items()}
        scale = None
        if config.placement == "states":
            scale = _mean_norm(backbone.prompts.states_of(word) for word in config.anchors.values())
        encoder = cls(config, vision, space, anchors, backbone.name, backbone.text_hash, scale)
        for attribute, words in config.words.items():
            anchor = encoder.anchor(attribute)
            vectors = torch.stack([backbone.prompts.spread(word, len(anchor)) for word in words]).detach().to(anchor)
            vectors = (vectors - anchor) / encoder.embedding_scale
            encoder.heads[attribute].vocabulary.set(vision.spec, words, config.templates, vectors)
        return encoder

    @property
    def word_scale(self) -> Tensor:
        """Norm of the anchors or of their hidden states, by `placement`: the scale of real words."""
        return self.embedding_scale / self.config.residual_scale

    @property
    def vision(self) -> VisionBackbone:
        return self._vision[0]

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
        features = self.filters[attribute]([tokens_BNW[d] for d in depths], mask)
        return features if vocabulary is None else torch.cat([features, vocabulary.read(tokens_BNW[-1][:, 0])], 1)

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

    def place(self, attribute: str, vectors: Tensor) -> Tensor:
        """What `PromptEncoder.encode` takes for an attribute's vectors (B, L, S, K, D)."""
        return place(vectors, self.anchor(attribute), self.config.placement)

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
            image: PIL, or pixels (3, H, W) in [-1, 1].
            mask: (1, H, W), 1 on the object.

        Raises:
            UserError: an unknown attribute.
        """
        unknown = set(attributes) - set(ATTRIBUTES)
        if unknown or not attributes:
            raise UserError(f"attributes {sorted(attributes)} given; expected some of {', '.join(ATTRIBUTES)}")
        pixels = to_pixels(image, self.vision.image_size) if isinstance(image, Image.Image) else image
        pixels = pixels[None].to(self.embedding_scale.device)
        mask = None if mask is None else mask[None].to(pixels)
        given = {f"{a}_pixels": pixels for a in attributes} | {f"{a}_mask": mask for a in attributes}
        vectors, gates = self(**given), self.gates()
        return Concept(
            vectors={a: v[0].float().cpu() for a, v in vectors.items()},
            anchors={a: self.anchor(a).float().cpu() for a in vectors},
            space=self.space, base_model=self.base_model, text_hash=self.text_hash,
            gates={a: gates[a].float().cpu() for a in vectors}, notes={"reference": note} if note else {},
            placement=self.config.placement,
        )  # fmt: skip

    def save_pretrained(self, folder: str | Path, unet: nn.Module | None = None, card: str = "") -> None:
        """Write a checkpoint folder; see `escdiff.encoder.checkpoint`."""
        from escdiff.encoder.checkpoint import save

        save(self, Path(folder), unet, card)

    @classmethod
    def from_pretrained(cls, folder: str | Path | None = None, backbone=None) -> "ConceptEncoder":
        """Read a checkpoint folder or the bundled encoder; see `escdiff.encoder.checkpoint`."""
        from escdiff.encoder.checkpoint import load

        return load(cls, folder, backbone)

    def plain_config(self) -> dict:
        """For config.json."""
        return asdict(self.config)


def _mean_norm(vectors: Iterable[Tensor]) -> Tensor:
    return torch.stack([v.detach().float().norm(dim=-1).mean() for v in vectors]).mean()


def open_gates(logits: Tensor, gates: str) -> Tensor:
    """(L, S) in 0..1, by `EncoderConfig.gates`."""
    if gates == "none":
        return torch.ones_like(logits)
    return (logits > 2).to(logits) if gates == "hand" else torch.sigmoid(logits)


def _gate_logits(attribute: str, layers: int, stages: int) -> Tensor:
    """Open where the literature puts the attribute, half-open elsewhere, so that gradients flow everywhere."""
    middle = [round(i * layers / 16) for i in (SHAPE_LAYERS.start, SHAPE_LAYERS.stop)]
    inside = torch.zeros(layers, dtype=torch.bool)
    inside[middle[0] : middle[1]] = True
    own = inside if attribute == "shape" else ~inside
    return torch.where(own, 3.0, 1.0)[:, None].repeat(1, stages)
