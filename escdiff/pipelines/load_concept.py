"""Concepts in anybody's diffusers pipeline: `load_concept(pipe, "mug.safetensors")`, then "a photo of a <shape>".

The pipeline's public `encode_prompt` is wrapped on the instance (`escdiff.pipelines.words`), and each cross-attention
layer of its U-Net (and of ControlNets) is bound to its slice. Prompts without a loaded placeholder take the stock path,
untouched. Legend: B batch, L layer cell, S stage, K vectors, D width.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from diffusers import DiffusionPipeline
from torch import Tensor

from escdiff.backbone.branches import check_branches
from escdiff.concept import IMAGE_TOKENS, Concept, attribute_parts
from escdiff.conditioning import ConditioningSpace
from escdiff.conditioning.fuse import Fusions
from escdiff.encoder.hub import concept_file
from escdiff.pipelines.attachments import Entry
from escdiff.pipelines.transformer_words import is_transformer, transformer_words_of
from escdiff.pipelines.words import words_of
from escdiff.support.errors import UserError

UNNAMED = ""  # the key of a concept that was loaded without a name
CALL = "\0"  # the key of the vectors of one call


def load_concept(
    pipeline: DiffusionPipeline,
    concept: Concept | str | os.PathLike,
    name: str | None = None,
    strength: float | Mapping[str, float] = 1.0,
    other_text_encoder: bool = False,
    folder: str | os.PathLike | None = None,
) -> tuple[str, ...]:
    """Teach a pipeline the placeholders of a concept.

    Works with every diffusers pipeline over a UNet2DConditionModel that has `encode_prompt`: Stable Diffusion 1.x, 2.x
    and XL, image to image, inpainting, ControlNet; with any scheduler, LoRA and `torch.compile`. Parts of the pipeline
    may be replaced afterwards: the next call binds the new U-Net, and compares a new text encoder with the concept's.
    Once its prompts are encoded, a pipeline needs no text encoder: set it to None to free its memory.
    Pipelines over the transformers of PixArt, Sana, SD 3, FLUX.1 and Qwen-Image take concepts of residuals, see
    `escdiff.pipelines.transformer_words`.

    Args:
        concept: or its file, or its name on the hub, "USER/REPO/NAME". Where it brings weights (`adapter/` beside the
            file), they act on every prompt, as any LoRA does, until it is unloaded.
        name: several concepts in one prompt need names: "mug" gives `<mug>`, `<mug-shape>` and `<mug-appearance>`;
            without a name they are `<concept>`, `<shape>` and `<appearance>`.
        strength: see `Concept.scaled`.
        other_text_encoder: accept a text encoder that was fine-tuned since; what the concept says may then shift.
        folder: where the concept's weights lie, if it is not given as a file.

    Returns:
        The placeholders.

    Raises:
        UserError: a concept for another model, naming both sides; a name that is taken, also by a textual inversion,
            or cannot stand in a prompt; weights that are missing; a pipeline of another kind.
    """
    if not isinstance(concept, Concept):
        file = concept_file(os.fspath(concept))
        concept, folder = Concept.load(file), file.parent if folder is None else folder
    concept = concept.scaled(strength)
    if (IMAGE_TOKENS in concept.extras or concept.fused) and "adapter" not in concept.notes:
        raise UserError("the concept has a picture's features, but no weights to take them; make it again")
    if (adapter := concept.notes.get("adapter")) and folder is None:
        raise UserError("the concept brings weights along; give its file, or folder=, where they lie")
    weights = Path(folder) / adapter if adapter else None
    if is_transformer(pipeline):
        return transformer_words_of(pipeline).add(name or UNNAMED, concept, other_text_encoder)
    vectors = concept.placeholders(name)
    counts = {word: value.shape[3] for word, value in vectors.items()}
    parts, fusions = attribute_parts(counts, name), concept.fusions(name)
    entry = Entry(vectors, concept.space, parts, fusions, concept, other_text_encoder, weights)
    check_branches(pipeline.unet, concept)
    return words_of(pipeline).add(name or UNNAMED, entry)


def unload_concept(pipeline: DiffusionPipeline, name: str | None = None) -> None:
    """Take one concept out, or all of them without a name; after the last one the pipeline is stock, bit for bit.

    Raises:
        UserError: no concept of this name is loaded.
    """
    words = transformer_words_of(pipeline) if is_transformer(pipeline) else words_of(pipeline)
    if name is not None and name not in words.loaded:
        raise UserError(f"no concept {name!r} is loaded; expected one of {', '.join(words.loaded) or 'none'}")
    words.remove(list(words.loaded) if name is None else [name])


@contextmanager
def loaded(
    pipeline: DiffusionPipeline, vectors: Mapping[str, Tensor], space: ConditioningSpace, fusions: Fusions | None = None
) -> Iterator[DiffusionPipeline]:
    """A pipeline that knows `{"<shape>": (B or 1, L, S, K, D)}` as long as this stands.

    Args:
        fusions: by placeholder, what the f in its U-Net fuses there.

    Raises:
        UserError: a placeholder that a loaded concept has.
    """
    words = words_of(pipeline)
    counts = {name: value.shape[3] for name, value in vectors.items()}
    names = {word[1:].removesuffix("-shape>") for word in counts if word.endswith("-shape>")}
    parts = {word: own for name in (None, *names) for word, own in attribute_parts(counts, name).items()}
    words.add(CALL, Entry(dict(vectors), space, parts, fusions or {}))
    try:
        yield pipeline
    finally:
        words.remove([CALL])
