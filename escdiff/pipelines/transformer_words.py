"""Concepts in diffusers' pipelines over a transformer: its text encoders read words, its blocks get residuals.

As with Stable Diffusion, the public `encode_prompt` is wrapped on the instance, and prompts without a loaded
placeholder take the stock path. Legend: B batch, L layers, S stages, K positions, W width of the text in a layer.
"""

import inspect
from collections.abc import Sequence
from functools import reduce

import torch
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import unwrap_module
from torch import Tensor

from escdiff.backbone.family import FAMILIES, Residuals, denoiser_of, family_of
from escdiff.backbone.family.reading import MASK, Place, only_encoder, residuals_at, undropped
from escdiff.backbone.family.spelling import Part, Spelled, spell
from escdiff.backbone.family.splicing import spliced_residuals
from escdiff.backbone.family.stored import check_concept, check_family, hash_text, text_encoders
from escdiff.concept import TEXT_ENCODER, Concept, placeholder
from escdiff.conditioning import Binding, ConditioningSpace
from escdiff.support.errors import UserError

HALVES = ("", "negative_")


class TransformerWords:
    """What loaded concepts add to the prompts of a pipeline over a transformer.

    Attributes:
        loaded: by the concept's name.

    Raises:
        UserError: a pipeline of another kind.
    """

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self.family = family_of(pipeline)
        if self.family.reading is None:
            known = ", ".join(name for name, family in FAMILIES.items() if family.reading)
            raise UserError(
                f"a {type(pipeline).__name__} was given; concepts are loaded into pipelines of the families "
                f"sd, {known}; others take packed prompts, see docs/families.md"
            )
        if getattr(pipeline, "controlnet", None) is not None:
            raise UserError(
                f"a {type(pipeline).__name__} was given; beside a ControlNet no transformer takes concepts yet: "
                "use the pipeline without it"
            )
        self.pipeline, self.stock, self.reading = pipeline, pipeline.encode_prompt, self.family.reading
        self.signature = inspect.signature(self.stock)
        self.loaded: dict[str, tuple[Concept, dict[str, tuple[Part, ...]]]] = {}
        self._binding: Binding | None = None
        self._attached: torch.nn.Module | None = None

    @property
    def model(self) -> torch.nn.Module:
        return denoiser_of(self.pipeline)

    @property
    def known(self) -> dict[str, tuple[Part, ...]]:
        """Placeholder -> its parts."""
        return {word: parts for _, own in self.loaded.values() for word, parts in own.items()}

    @property
    def space(self) -> ConditioningSpace:
        """All layers, and stages with room for all that is loaded."""
        joined = reduce(ConditioningSpace.join, (concept.space for concept, _ in self.loaded.values()))
        return self.family.space(self.model, joined.stage_bounds)

    def add(self, key: str, concept: Concept, other_text_encoder: bool = False) -> tuple[str, ...]:
        """Load a concept under a key; gives its placeholders.

        Raises:
            UserError: a concept of another model, naming both sides; a key or placeholder that is taken.
        """
        encoders = text_encoders(self.pipeline)
        text_hash = None if other_text_encoder else hash_text(encoders)
        if text_hash and concept.text_hash == hash_text(encoders, torch.float16):  # of an earlier version
            text_hash = concept.text_hash
        self._check(concept, text_hash)
        if others := [name for name, (other, _) in self.loaded.items() if other.entry != concept.entry]:
            raise UserError(
                f"the concept's vectors enter the {concept.entry}, those of the loaded {others[0] or 'concept'} "
                "do not: unload that one, or make both in the same way"
            )
        own = {a: Part(f"{key}/{a}", concept.words[a], vectors.shape[2]) for a, vectors in concept.vectors.items()}
        parts = {word: tuple(own.values()) for word in concept.placeholders(key or None)}
        parts |= {placeholder(f"{key}-{a}" if key else a): (part,) for a, part in own.items()}
        if key in self.loaded or self.known.keys() & parts.keys():
            taken = key or ", ".join(sorted(self.known.keys() & parts.keys()))
            raise UserError(
                f"the pipeline has a concept with {taken} already; give this one a name, or unload that one"
            )
        self.loaded[key] = concept, parts
        try:
            self._attach()
        except BaseException:
            self.remove([key])
            raise
        self.pipeline.encode_prompt = self.encode_prompt
        return tuple(parts)

    def remove(self, keys: Sequence[str]) -> None:
        """Unload; with the last one the pipeline is stock again."""
        for key in keys:
            del self.loaded[key]
        self._attach()
        if not self.loaded:
            vars(self.pipeline).pop("encode_prompt", None)

    def encode_prompt(self, *args, **kwargs) -> tuple:
        """The pipeline's own, with the words of placeholders, and residuals behind the text."""
        bound = self.signature.bind(*args, **kwargs)
        given, spelled = bound.arguments, {}
        for name in (half + prompt for half in HALVES for prompt in ("prompt", "prompt_2", "prompt_3")):
            texts = [given[name]] if isinstance(given.get(name), str) else given.get(name)
            if texts is not None:
                spelled[name] = [spell(text, self.known, self.reading.lower) for text in texts]
        if not any(text.places for texts in spelled.values() for text in texts):
            return self.stock(*args, **kwargs)
        if unwrap_module(self.model) is not self._attached:  # the pipeline was given another transformer
            self._attach()
        for name, texts in spelled.items():
            given[name] = texts[0].text if isinstance(given[name], str) else [text.text for text in texts]
        if "clean_caption" in self.signature.parameters:
            given["clean_caption"] = False  # which would move the words
        results = list(self.stock(*bound.args, **bound.kwargs))
        length = given.get("max_sequence_length", self.signature.parameters["max_sequence_length"].default)
        halves = {}
        for half, index in zip(HALVES, self.reading.embeds, strict=False):
            if results[index] is not None:
                made = given.get(half + "prompt_embeds") is None
                halves[index] = self._places(spelled, half, given, length) if made else [[]]
        for index, residuals in self._all_residuals(halves, spelled, given, results).items():
            results[index] = self.family.pack(self.model, self.space, results[index], residuals)
        return tuple(results)

    def _all_residuals(
        self, halves: dict[int, list[list[Place]]], spelled: dict[str, list[Spelled]], given: dict, results: list
    ) -> dict[int, Residuals]:
        """Of the texts where `encode_prompt` returns them, as many positions each, since pipelines join them."""
        if any(concept.entry == TEXT_ENCODER for concept, _ in self.loaded.values()):
            ahead = self.reading.arguments[MASK] - self.reading.embeds[0]  # its mask stands behind every text
            tokens = max(int(results[index + ahead].sum(1).max()) for index in halves)
            return {
                index: self._spliced(rows, half, spelled, given, results[index], tokens)
                for half, (index, rows) in zip(HALVES, halves.items(), strict=False)
            }
        count = max(len(row) for rows in halves.values() for row in rows)
        return {index: self._residuals(rows, count, results[index]) for index, rows in halves.items()}

    def _spliced(
        self, rows: list[list[Place]], half: str, spelled: dict[str, list[Spelled]], given: dict, like: Tensor,
        tokens: int,
    ) -> Residuals:  # fmt: skip
        """As `_residuals`, of learned words inside the text encoder, which reads the texts once more per layer."""
        framed = {} if half else given
        own = {"num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        own |= {name: given[name] for name in ("device", "clean_caption", "max_sequence_length") if name in given}
        own |= {name: value for name, value in framed.items() if name == "complex_human_instruction"}
        texts = [text.text for text in spelled.get(half + "prompt", [Spelled("")] * len(rows))]

        def encode(number: int, count: int) -> Tensor:
            return self.stock(**own | {"prompt": [texts[number]] * count})[self.reading.embeds[0]]

        pictures = len(like) // len(rows)
        places = undropped(rows, self.pipeline, self.reading, framed)
        found = spliced_residuals(
            self.family, self.model, only_encoder(self.pipeline, self.reading), texts, places, self._vectors(),
            self.space, like[::pictures], tokens, encode,
        )  # fmt: skip
        return _repeated(found, pictures, like)

    def _check(self, concept: Concept, text_hash: str | None) -> None:
        family, splices = family_of(self.model), concept.entry == TEXT_ENCODER
        if splices and not family.splices:
            check_family(concept, family, f"the pipeline's {type(self.model).__name__}")
            raise UserError(
                f"the concept holds words of a text encoder, which the family {family.name!r} does not take"
            )
        encoder = only_encoder(self.pipeline, self.reading) if splices else None
        width = encoder.get_input_embeddings().embedding_dim if splices else family.layer_width(self.model)
        check_concept(concept, family, self.model, width, text_hash)

    def _attach(self) -> None:
        if self._binding is not None:
            self._binding.remove()
        self._binding, self._attached = None, None
        if self.loaded:
            for concept, _ in self.loaded.values():
                self._check(concept, None)
            self._binding = self.family.attach(self.model, self.space)
            self._attached = unwrap_module(self.model)

    def _places(self, spelled: dict[str, list[Spelled]], half: str, given: dict, length: int) -> list[list[Place]]:
        """Of every prompt of a half, see `Reading.places`; no family writes anything around negative ones."""
        texts = {name.removeprefix(half): found for name, found in spelled.items() if name.startswith(half + "prompt")}
        return self.reading.places(self.pipeline, {"prompt": [Spelled("")]} | texts, {} if half else given, length)

    def _residuals(self, rows: list[list[Place]], count: int, like: Tensor) -> Residuals:
        """(B, L, S, K, W) for prompts, each repeated for its pictures."""
        space, width = self.space, self.family.layer_width(self.model)
        found = residuals_at(rows, self._vectors(), (space.num_layers, space.num_stages, width), count)
        return _repeated(found, len(like) // len(rows), like)

    def _vectors(self) -> dict[str, Tensor]:
        """By `Part.attribute`, (1, L, S, K, W): what the loaded concepts add to their words."""
        return {
            f"{key}/{name}": (value - concept.anchors[name])[None]
            for key, (concept, _) in self.loaded.items()
            for name, value in concept.vectors.items()
        }


def _repeated(found: Residuals, pictures: int, like: Tensor) -> Residuals:
    """For as many pictures of each prompt."""
    values, positions = (x.repeat_interleave(pictures, 0) for x in (found.values, found.positions))
    return Residuals(values.to(like), positions)


def is_transformer(pipeline: DiffusionPipeline) -> bool:
    """Whether a transformer paints, not a U-Net."""
    return getattr(pipeline, "unet", None) is None and getattr(pipeline, "transformer", None) is not None


def transformer_words_of(pipeline: DiffusionPipeline) -> TransformerWords:
    """The words that a pipeline has learned, none at first.

    Raises:
        UserError: a pipeline of another kind.
    """
    words = getattr(vars(pipeline).get("encode_prompt"), "__self__", None)
    return words if isinstance(words, TransformerWords) else TransformerWords(pipeline)
