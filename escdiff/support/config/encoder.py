"""The block `encoder`: the concept encoder, as its checkpoint's config.json keeps it, too."""

from dataclasses import dataclass

from escdiff.support.config.keys import key

ATTRIBUTES = ("shape", "appearance")  # as in escdiff.concept, which lies above


@dataclass
class EncoderConfig:
    """Everything from which a checkpoint's encoder is built again; plain values only."""

    vision: str = key("mini", "the vision tower: mini, open_clip:NAME/WEIGHTS, or a transformers folder or hub id")
    shape_depths: list[int] = key([1, 2, 3], "depths of the tower that the shape filter reads")
    appearance_depths: list[int] = key([0, 1, 3], "depths of the tower that the appearance filter reads")
    tokens: dict[str, int] = key({"shape": 2, "appearance": 6}, "word-embedding vectors per attribute and layer")
    anchors: dict[str, str] = key({"shape": "object", "appearance": "colored"}, "words that the vectors start from")
    vocabulary: dict[str, list[str]] = key({"shape": [], "appearance": []}, "words that the tower's CLIP reads off a "
                                           "picture; the vectors start from their mixture")  # fmt: skip
    templates: list[str] = key(["a photo of a {}"], "texts that it reads them in")
    features: int = key(256, "width of each filter's output", low=1)
    rank: int = key(8, "of what a layer adds to the vectors that all layers share", low=0)
    residual_anchor: bool = key(True, "the vectors depart from the anchor words; false: from zero")
    residual_scale: float = key(1.0, "of the residuals, in units of the norm of a real word's embedding")
    gates: str = key(
        "learned", "of layers; hand: shape on layers 4-8; none: all open", choices=("learned", "hand", "none")
    )
    positions: bool = key(True, "position embeddings in the shape filter")
    appearance_positions: bool = key(False, "position embeddings in the appearance filter")
    instance_norm: bool = key(True, "instance normalisation in the shape filter")
    branch_rank: int = key(0, "of the LoRA branches on the U-Net's keys and values; 0 for none", low=0)
    branches: str = key("lora", "lora: on every token; routed: each branch on the tokens of its own placeholder",
                        choices=("lora", "routed"))  # fmt: skip
    branched: str = key("both", "the attributes that have a branch", choices=("both", "shape", "appearance"))

    def __post_init__(self) -> None:
        empty = {attribute: [] for attribute in ATTRIBUTES}
        self.vocabulary = empty | {attribute: list(words) for attribute, words in self.vocabulary.items()}

    @property
    def branch_names(self) -> tuple[str, ...]:
        """The attributes with a branch, which is also the name of its adapter; none where there are no branches."""
        if not self.branch_rank:
            return ()
        return ATTRIBUTES if self.branched == "both" else (self.branched,)

    @property
    def words(self) -> dict[str, list[str]]:
        """The vocabularies that are not empty."""
        return {attribute: words for attribute, words in self.vocabulary.items() if words}
