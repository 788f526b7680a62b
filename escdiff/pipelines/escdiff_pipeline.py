"""`ESCDiffPipeline`: diffusers' pipeline with a concept encoder, by diffusers' conventions."""

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor

from escdiff.backbone.branches import remove_branches
from escdiff.backbone.identify import cannot_load, read_blueprint
from escdiff.backbone.lora import without_adapters
from escdiff.concept import Concept
from escdiff.data.colours import alpha_of, to_rgb
from escdiff.data.pictures import open_picture, to_mask, visible
from escdiff.encoder import ConceptEncoder
from escdiff.encoder.checkpoint import CONFIG, bundled_folder, read_branches, read_config
from escdiff.encoder.hub import fetch
from escdiff.pipelines.load_concept import UNNAMED, load_concept, unload_concept
from escdiff.pipelines.words import words_of
from escdiff.support.errors import UserError
from escdiff.support.files import keep_umask
from escdiff.support.names import hub_id

ENCODER = "concept_encoder"  # folder beside the pipeline's parts
HUB = ("revision", "cache_dir", "token", "local_files_only")
Picture = Image.Image | str | os.PathLike


class ConceptPipeline:
    """What `ESCDiffPipeline` adds to a stock pipeline: a concept encoder, and pictures beside the prompt.

    Attributes:
        concept_encoder: reads reference pictures; None until one is given.
    """

    concept_encoder: ConceptEncoder | None = None

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike = "mini", encoder: ConceptEncoder | str | os.PathLike | None = None,
        vision: str | None = None, **options: Any,
    ):  # fmt: skip
        """As of diffusers, with "mini" for the bundled model.

        Args:
            encoder: or its folder or hub id; without, the one that `save_pretrained` put beside the weights, or the
                bundled one of the bundled model.
            vision: where the encoder's vision tower lies, see `ConceptEncoder.from_pretrained`.
            options: of diffusers' `from_pretrained`, such as `dtype`, `variant`, `revision`, `scheduler`.

        Raises:
            UserError: nothing loadable under this name, pickled weights, or an encoder for another backbone.
        """
        hub = {key: options[key] for key in HUB if key in options}
        if str(name) == "mini":
            encoder = encoder or bundled_folder()
        plan = read_blueprint(name, **hub)  # refuses what is no backbone before weights are read
        if plan.family.reading is not None:
            what = (
                f"the backbone {str(name)!r} is of the family {plan.family.name!r}; {cls.__name__} is Stable Diffusion"
            )
            raise UserError(f"{what}: use diffusers' pipeline with escdiff.load_concept")
        if encoder is None:
            encoder = _beside(plan.source, hub)
        if encoder is not None and not isinstance(encoder, ConceptEncoder):
            own = {key: value for key, value in hub.items() if key != "revision"}  # that one is the pipeline's
            read_config(encoder, plan, **own)
            encoder = ConceptEncoder.from_pretrained(encoder, vision=vision, **own)
        try:
            pipeline = super().from_pretrained(plan.source, **{"use_safetensors": True} | options)
        except Exception as error:  # the loaders of three libraries raise what they like
            raise cannot_load(str(name), error) from error
        pipeline.set_encoder(encoder)
        return pipeline

    def set_encoder(self, encoder: ConceptEncoder | str | os.PathLike | None) -> None:
        """Use this concept encoder, or the one of this folder or hub id, in place of the one before; None for none.

        Raises:
            UserError: it was made for another text encoder, or comes without its branches; the one before stays.
        """
        if encoder is not None and not isinstance(encoder, ConceptEncoder):
            encoder = ConceptEncoder.from_pretrained(encoder)
        branches = None
        if encoder is not None:
            found = words_of(self).encoder.fingerprint()
            if found not in (None, encoder.text_hash):
                raise UserError(
                    f"the encoder was trained for {encoder.base_model!r} (text encoder {encoder.text_hash}), the "
                    f"pipeline has {found}; use the model it was trained for"
                )
            branches = encoder.branches
            if encoder.config.branch_rank and branches is None:
                what = "the encoder's branches are in the U-Net that they were trained in"
                raise UserError(f"{what}; write it with save_pretrained(FOLDER, unet) and give the folder")
        if branches is not None:
            branches.put(self.unet)
        elif self.unet is not None:
            remove_branches(self.unet)
        self.concept_encoder = None if encoder is None else encoder.to(self.device)

    def to(self, *args: Any, **kwargs: Any):
        """As of diffusers; the concept encoder goes to the same device and keeps its type."""
        pipeline = super().to(*args, **kwargs)
        if self.concept_encoder is not None:
            self.concept_encoder.to(self.device)
        return pipeline

    def save_pretrained(self, folder: str | os.PathLike, **options: Any) -> None:
        """As of diffusers, with the encoder and its branches in a folder beside; stock diffusers reads the result too.

        Adapters of the U-Net, the encoder's branches or a LoRA, are not among the stock weights.
        """
        if self.concept_encoder is not None:
            self.concept_encoder.save_pretrained(Path(folder) / ENCODER)
        stock = _stock(type(self))
        wanted = inspect.signature(stock.__init__).parameters
        settings = {key: value for key, value in self.config.items() if key in wanted}
        stock(**settings | self.components | {"unet": without_adapters(self.unet)}).save_pretrained(folder, **options)
        keep_umask(folder)

    def encode_references(
        self, shape: Picture | None = None, appearance: Picture | None = None, mask: Tensor | Picture | None = None
    ) -> Concept:
        """A concept of one or two pictures, in one forward pass each.

        Args:
            mask: of a single picture: one of its size, white on the object, or (1, H, W), 1 on the object in the
                centre square that the encoder sees; without it each picture's transparency, if it has any.

        Raises:
            UserError: no picture, no encoder, or a mask of two pictures or of another size.
        """
        given = {name: picture for name, picture in (("shape", shape), ("appearance", appearance)) if picture}
        if not given:
            raise UserError("no picture was given; expected shape=, appearance= or both")
        if mask is not None and len(given) == 2 and shape != appearance:
            raise UserError("one mask was given for two pictures; expected a single picture, see encode_references")
        if self.concept_encoder is None:
            raise UserError("the pipeline has no concept encoder; give from_pretrained(..., encoder=FOLDER)")
        side = self.concept_encoder.vision.image_size
        pictures = {name: _read(picture) for name, picture in given.items()}
        if mask is not None and not isinstance(mask, Tensor):
            size, mask = next(iter(pictures.values()))[0].size, _read(mask)[0]
            if mask.size != size:
                raise UserError(f"the mask has {mask.size} pixels, its picture {size}; expected the same")
            mask = to_mask(mask, side)
        parts = {}
        for name, (picture, alpha) in pictures.items():
            own = visible(alpha, side) if mask is None and alpha is not None else mask
            parts[name] = self.concept_encoder.encode(picture, own, attributes=(name,))
        return Concept.combine(**parts)

    def __call__(
        self, *args: Any, shape: Picture | None = None, appearance: Picture | None = None,
        mask: Tensor | Picture | None = None, concept: Concept | str | os.PathLike | None = None,
        strength: float | Mapping[str, float] = 1.0, **options: Any,
    ):  # fmt: skip
        """As of diffusers; with pictures or a concept, the prompt may name `<shape>`, `<appearance>` or `<concept>`.

        Args:
            shape: reference picture (PIL or path) of the shape.
            appearance: of the appearance; it may be the same.
            mask: of the object in the reference, see `encode_references`.
            concept: or its file, instead of pictures.
            strength: see `Concept.scaled`.

        Raises:
            UserError: see `encode_references` and `load_concept`.
        """
        if shape is not None or appearance is not None:
            if concept is not None:
                raise UserError("pictures and a concept were given; expected one or the other")
            concept = self.encode_references(shape, appearance, mask)
        elif mask is not None:
            raise UserError("a mask was given without a picture; expected shape= or appearance= with it")
        if concept is None:
            return super().__call__(*args, **options)
        load_concept(self, concept, strength=strength)
        try:
            return super().__call__(*args, **options)
        finally:
            unload_concept(self, UNNAMED)


def _with_signature(call: Callable, stock: Callable) -> Callable:
    """`call` with the parameters of the stock pipeline, whichever diffusers has, and its own behind them."""

    def __call__(self, *args, **kwargs):
        return call(self, *args, **kwargs)

    ours = [p for p in inspect.signature(call).parameters.values() if p.kind is p.KEYWORD_ONLY]
    theirs = inspect.signature(stock)
    parameters = list(theirs.parameters.values())
    last = len(parameters) - any(p.kind is p.VAR_KEYWORD for p in parameters)
    __call__.__signature__ = theirs.replace(parameters=[*parameters[:last], *ours, *parameters[last:]])
    __call__.__doc__ = f"{inspect.getdoc(call)}\n\nOf diffusers:\n\n{inspect.getdoc(stock)}"
    return __call__


class ESCDiffPipeline(ConceptPipeline, StableDiffusionPipeline):
    """`StableDiffusionPipeline` with a concept encoder: `pipe("a photo of a <shape>", shape="mug.png")`."""

    __call__ = _with_signature(ConceptPipeline.__call__, StableDiffusionPipeline.__call__)


class ESCDiffXLPipeline(ConceptPipeline, StableDiffusionXLPipeline):
    """`StableDiffusionXLPipeline` with a concept encoder."""

    __call__ = _with_signature(ConceptPipeline.__call__, StableDiffusionXLPipeline.__call__)


def load_branches(pipeline: DiffusionPipeline, encoder: str | os.PathLike, **hub: Any) -> None:
    """Give a pipeline's U-Net the branches of an encoder, which that encoder's concepts need.

    Args:
        encoder: its folder, or hub id.
        hub: see `ConceptEncoder.from_pretrained`.

    Raises:
        UserError: no encoder there, one without branches, or one for another U-Net.
    """
    folder, _, config, _ = read_config(encoder, **hub)
    branches = read_branches(folder, config)
    if branches is None:
        raise UserError(f"the encoder {str(encoder)!r} has no branches; its concepts need none")
    branches.put(pipeline.unet)


def _stock(kind: type) -> type[DiffusionPipeline]:
    return next(base for base in kind.__mro__ if base.__module__.startswith("diffusers."))


def _beside(source: str, hub: Mapping[str, Any]) -> Path | None:
    """The encoder in the pipeline's own folder or repository, if there is one."""
    folder = fetch(source, ENCODER, **hub) if hub_id(source) else Path(source) / ENCODER
    return folder if (folder / CONFIG).is_file() else None


def _read(given: Picture) -> tuple[Image.Image, Image.Image | None]:
    """RGB, and the transparency (mode L) if there is any."""
    if isinstance(given, Image.Image):
        return to_rgb(given), alpha_of(given)
    picture = open_picture(given)
    return picture.rgb, picture.alpha
