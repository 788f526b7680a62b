"""A transformer's concept: residuals for every layer, beside the ordinary words that its text encoders read.

It is a `Concept` whose `family` and `words` say what it was made for and what the text encoders read.
Legend: L layers, S stages, K vectors, W width of the text as a layer reads it.
"""

import hashlib
from collections.abc import Mapping, Sequence

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from escdiff.backbone.family.base import Family
from escdiff.concept import Concept
from escdiff.conditioning import ConditioningSpace
from escdiff.support.errors import UserError

ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


def residual_concept(
    family: Family, space: ConditioningSpace, residuals: Mapping[str, Tensor], words: Mapping[str, str],
    base_model: str, text_hash: str, license: str = "",
) -> Concept:  # fmt: skip
    """A concept of residuals.

    Args:
        residuals: attribute -> (L, S, K, W).
        words: attribute -> what the text encoders read in its place, such as "mug".

    Raises:
        UserError: an attribute without words, or shapes that do not fit the space.
    """
    if missing := [name for name in residuals if not words.get(name, "").strip()]:
        raise UserError(f"the attribute {missing[0]!r} was given without words; expected such as 'object'")
    return Concept(
        vectors=dict(residuals),
        anchors={name: value.new_zeros(value.shape[2:]) for name, value in residuals.items()},
        space=space,
        base_model=base_model,
        text_hash=text_hash,
        license=license,
        family=family.name,
        words={name: words[name] for name in residuals},
    )


def phrase(word: str, count: int) -> str:
    """Words of at least `count` tokens for as many vectors: the word as often."""
    return " ".join([word] * count)


def phrases(family: str, words: Mapping[str, str], vectors: Mapping[str, Tensor]) -> dict[str, str]:
    """`Concept.words` for vectors (..., K, W) by attribute; none of Stable Diffusion's, whose anchors are words."""
    return {} if family == "sd" else {a: phrase(words[a], value.shape[-2]) for a, value in vectors.items()}


def check_family(concept: Concept, family: Family, model: str) -> None:
    """Refuse a concept of another family than that of a model by this name.

    Raises:
        UserError: naming both sides.
    """
    if concept.family != family.name:
        raise UserError(
            f"the concept was made for {concept.base_model!r} of the family {concept.family!r}, "
            f"{model} is of the family {family.name!r}: use the backbone it was made for"
        )


def check_concept(concept: Concept, family: Family, model: nn.Module, width: int, text_hash: str | None) -> None:
    """Refuse a concept of another family or model.

    Args:
        width: of vectors where the concept's enter.
        text_hash: of the pipeline's text encoders; None accepts any.

    Raises:
        UserError: naming both sides.
    """
    check_family(concept, family, f"the pipeline's {type(model).__name__}")
    concept.check_fits(family.space(model, concept.space.stage_bounds), width, text_hash)


def text_encoders(pipeline: DiffusionPipeline) -> list[nn.Module]:
    """Those that a pipeline has."""
    return [part for name in ENCODERS if (part := getattr(pipeline, name, None)) is not None]


def hash_text(encoders: Sequence[nn.Module], dtype: torch.dtype = torch.bfloat16) -> str:
    """Twelve hexadecimal digits of text encoders' word embeddings in bfloat16, as which the large ones are read.

    Equal for float32 and bfloat16; of weights that float16 rounded before, the digits may be others.

    Args:
        dtype: float16 as concepts of earlier versions have it.
    """
    digest = hashlib.sha256()
    for encoder in encoders:
        weight = encoder.get_input_embeddings().weight.detach()
        digest.update(weight.to("cpu", dtype).contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:12]
