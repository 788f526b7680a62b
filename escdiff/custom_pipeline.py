"""`ESCDiffPipeline`: diffusers' pipeline with a concept encoder, by diffusers' conventions."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from torch import Tensor

from escdiff.blueprint import mini_folder, read_blueprint
from escdiff.concept import Concept
from escdiff.data.images import open_image
from escdiff.encoder import ConceptEncoder
from escdiff.encoder.branches import load_branches
from escdiff.encoder.checkpoint import BRANCHES, bundled_folder, read_config
from escdiff.errors import UserError
from escdiff.loading import UNNAMED, load_concept, unload_concept, words_of

ENCODER = "concept_encoder"  # folder beside the pipeline's parts
Picture = Image.Image | str | os.PathLike


class ConceptPipeline:
    """What `ESCDiffPipeline` adds to a stock pipeline: a concept encoder, and pictures beside the prompt.

    Attributes:
        concept_encoder: reads reference pictures; None until one is given.
    """

    concept_encoder: ConceptEncoder | None = None

    @classmethod
    def from_pretrained(
        cls, name: str | os.PathLike = "mini", encoder: ConceptEncoder | str | os.PathLike | None = None, **options: Any
    ):
        """As of diffusers, with "mini" for the bundled model.

        Args:
            encoder: or its folder; without, the one that `save_pretrained` put beside the weights, or the bundled one
                of the bundled model.
            options: of diffusers' `from_pretrained`, such as `dtype`, `variant`, `revision`, `scheduler`.

        Raises:
            UserError: an encoder for another backbone.
        """
        folder = mini_folder() if str(name) == "mini" else Path(name)
        if str(name) == "mini":
            name, encoder = folder, encoder or bundled_folder()
        elif encoder is None and (folder / ENCODER).is_dir():
            encoder = folder / ENCODER
        if encoder is not None and not isinstance(encoder, ConceptEncoder):
            where = ("revision", "cache_dir", "token", "local_files_only")
            plan = read_blueprint(name, **{key: options[key] for key in where if key in options})
            read_config(encoder, plan)  # refuses before weights are read
        pipeline = super().from_pretrained(name, **{"use_safetensors": True} | options)
        pipeline.set_encoder(encoder)
        return pipeline

    def set_encoder(self, encoder: ConceptEncoder | str | os.PathLike | None) -> None:
        """Use this concept encoder, or the one of this folder.

        Raises:
            UserError: it was made for another text encoder, or has routed branches.
        """
        folder = None if encoder is None or isinstance(encoder, ConceptEncoder) else Path(encoder)
        if folder is not None:
            encoder = ConceptEncoder.from_pretrained(folder)
        found = words_of(self).encoder.fingerprint()
        if encoder is not None and found not in (None, encoder.text_hash):
            raise UserError(
                f"the encoder was trained for {encoder.base_model!r} (text encoder {encoder.text_hash}), the pipeline "
                f"has {found}; use the model it was trained for"
            )
        if folder is not None and (folder / BRANCHES).is_dir():
            if encoder.config.branches == "routed":  # a stock pipeline does not say where its placeholders stand
                raise UserError(f"the encoder '{folder}' has routed branches; paint with escdiff.pipeline.generate")
            load_branches(self.unet, folder / BRANCHES)
        self.concept_encoder = encoder

    def save_pretrained(self, folder: str | os.PathLike, **options: Any) -> None:
        """As of diffusers, with the encoder in a folder beside; stock diffusers reads the result too."""
        super().save_pretrained(folder, **options)
        index = Path(folder) / "model_index.json"
        stock = next(kind for kind in type(self).__mro__ if kind.__module__.startswith("diffusers."))
        index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": stock.__name__}, indent=2) + "\n")
        if self.concept_encoder is not None:
            self.concept_encoder.save_pretrained(Path(folder) / ENCODER)

    def encode_references(
        self, shape: Picture | None = None, appearance: Picture | None = None, mask: Tensor | None = None
    ) -> Concept:
        """A concept of one or two pictures, in one forward pass each.

        Args:
            mask: (1, H, W), 1 on the object, for a single picture.

        Raises:
            UserError: no picture, or no encoder.
        """
        given = {name: picture for name, picture in (("shape", shape), ("appearance", appearance)) if picture}
        if not given:
            raise UserError("no picture was given; expected shape=, appearance= or both")
        if self.concept_encoder is None:
            raise UserError("the pipeline has no concept encoder; give from_pretrained(..., encoder=FOLDER)")
        parts = {}
        for name, picture in given.items():
            image = picture if isinstance(picture, Image.Image) else open_image(picture)
            parts[name] = self.concept_encoder.encode(image.convert("RGB"), mask, attributes=(name,))
        return Concept.combine(**parts)

    def __call__(
        self, prompt: str | list[str] | None = None, *args, shape: Picture | None = None,
        appearance: Picture | None = None, concept: Concept | str | os.PathLike | None = None,
        strength: float | Mapping[str, float] = 1.0, **options: Any,
    ):  # fmt: skip
        """As of diffusers; with pictures or a concept, the prompt may name `<shape>`, `<appearance>` or `<concept>`.

        Args:
            shape: reference picture (PIL or path) of the shape.
            appearance: of the appearance; it may be the same.
            concept: or its file, instead of pictures.
            strength: see `Concept.scaled`.

        Raises:
            UserError: see `encode_references` and `load_concept`.
        """
        if shape is not None or appearance is not None:
            if concept is not None:
                raise UserError("pictures and a concept were given; expected one or the other")
            concept = self.encode_references(shape, appearance)
        if concept is None:
            return super().__call__(prompt, *args, **options)
        load_concept(self, concept, strength=strength)
        try:
            return super().__call__(prompt, *args, **options)
        finally:
            unload_concept(self, UNNAMED)


class ESCDiffPipeline(ConceptPipeline, StableDiffusionPipeline):
    """`StableDiffusionPipeline` with a concept encoder: `pipe("a photo of a <shape>", shape="mug.png")`."""


class ESCDiffXLPipeline(ConceptPipeline, StableDiffusionXLPipeline):
    """`StableDiffusionXLPipeline` with a concept encoder."""
