"""All that `python infer.py` reads."""

from dataclasses import dataclass

from escdiff.support.config.backbone import DTYPE_NAMES, BackboneConfig
from escdiff.support.config.control import EditConfig, NamedConfig
from escdiff.support.config.keys import block, key
from escdiff.support.config.train import PRECISIONS


@dataclass
class StrengthConfig:
    """Weights of the attributes: 0 says the anchor word only, 1 the reference, more exaggerates."""

    shape: float = key(1.0, "of the shape")
    appearance: float = key(1.0, "of the appearance")


@dataclass
class ReaderConfig:
    """The concept encoder that reads the references; encoder=DIR names it."""

    name: str | None = key(None, "folder, or USER/NAME on the hub; null: the bundled one", verbatim=True)
    vision: str | None = key(None, "where its vision tower lies, if that is a folder of another machine", verbatim=True)


@dataclass
class InferConfig:
    """One picture in, shape and appearance out. Texts and paths are typed as they are, without more quotes."""

    shape: str | None = key(None, "picture, or concept file, whose shape to take", verbatim=True)
    appearance: str | None = key(None, "picture, or concept file, whose appearance to take; the same one as for the "
                                 "shape is fine", verbatim=True)  # fmt: skip
    concept: str | None = key(None, "concept file instead of pictures, or USER/REPO/NAME on the hub; several, files or "
                              "pictures, with commas: mug=FILE,dog=FILE, which the prompt calls <mug> and <dog>",
                              verbatim=True)  # fmt: skip
    mix: str = key("hand", "of concept files without a shape of their own: hand (layers 4-8 are it), gates (the "
                   "encoder's), or a share 0..1")  # fmt: skip
    prompt: str | None = key(None, "with <shape>, <appearance> or <concept> where they belong; null: a plain one",
                             verbatim=True)  # fmt: skip
    mask: str | None = key(None, "of a cluttered picture: a file, white on the object, or auto; of several, "
                           "mug=FILE,dog=FILE", verbatim=True)  # fmt: skip
    segmenter: str | None = key(None, "for mask=auto, a segmentation model of transformers; null: transparency, else "
                                "what differs from the rim", verbatim=True)  # fmt: skip
    references: str | None = key(None, "folder of pictures for the overview, if none of the above is given; null: the "
                                 "bundled examples", verbatim=True)  # fmt: skip
    groups: str | None = key(None, "phrases of the prompt, for control=conform and attend_excite: red mug; blue chair",
                             verbatim=True)  # fmt: skip
    boxes: str | None = key(None, "for control=boxes: mug=0,.2,.5,1; chair=.5,.2,1,1, as shares of the sides: left, "
                            "top, right, bottom", verbatim=True)  # fmt: skip
    picture: str | None = key(None, "a picture of your own, for edit=", verbatim=True)
    source: str | None = key(None, "what that picture shows, in words", verbatim=True)
    num_images: int = key(4, "pictures; one where an edit inverts picture=", low=1)
    size: int | None = key(None, "pixels of both sides, multiples of 8; null: what the backbone was made for, as "
                            "every edit paints", low=8)  # fmt: skip
    height: int | None = key(None, "pixels; null: size", low=8)
    width: int | None = key(None, "pixels; null: size", low=8)
    seed: int = key(0, "picture i starts from noise number seed + i", low=0)
    steps: int = key(25, "of sampling", low=1)
    guidance: float = key("${backbone.guidance}", "classifier-free guidance scale; 1 or less switches it off", low=0)
    negative_prompt: str | None = key(None, "what the pictures should not show", verbatim=True)
    strength: StrengthConfig = block(StrengthConfig)
    encoder: ReaderConfig = block(ReaderConfig, verbatim=True)
    concept_dtype: str = key("float16", "of concept files: half the size of float32", choices=DTYPE_NAMES)
    out: str = key("outputs/infer", "folder of the results", verbatim=True)
    device: str = key("auto", "auto, cpu, cuda, cuda:1, mps")
    batch_size: int = key(8, "pictures painted at once", low=1)
    matmul_precision: str = key("high", "of float32 products on a GPU; see torch.set_float32_matmul_precision",
                                choices=PRECISIONS)  # fmt: skip
    backbone: BackboneConfig = block(BackboneConfig)
    control: NamedConfig | None = key(None, "how to steer the painting; see the groups")
    edit: EditConfig | None = key(None, "how to edit picture=; see the groups")

    def given(self, *names: str) -> dict[str, str]:
        """Those of the keys that are set, with their values."""
        return {name: value for name in names if (value := getattr(self, name))}
