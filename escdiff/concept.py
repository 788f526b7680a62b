"""The concept: what was read from a reference, as word vectors for every cell of a conditioning space.

A concept is a small safetensors file with string metadata; reading one never runs code.
Legend: L layer cell, S stage, K vectors per attribute, D width of the text encoder.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from escdiff.conditioning import PromptEncoder
from escdiff.conditioning.grid import blend
from escdiff.conditioning.placement import PLACEMENTS, place
from escdiff.conditioning.space import ConditioningSpace
from escdiff.errors import UserError

ATTRIBUTES = ("shape", "appearance")
WHOLE = "concept"  # `<concept>` stands for all attributes
FORMAT, VERSION = "escdiff-concept", "1"
IMAGE_TOKENS = "image_embeds"  # in `extras`: (N, W) or (W,), what an image adapter of the U-Net attends to
PARTS = ("vectors", "anchors", "gates", "extras")  # of the file


def placeholder(attribute: str) -> str:
    """The pseudo-word of an attribute: "shape" -> "<shape>"."""
    return f"<{attribute}>"


def plain_prompt(attributes: Sequence[str]) -> str:
    """All that a concept has, in one phrase."""
    if attributes == ATTRIBUTES:
        return "a photo of a <appearance> <shape>"
    if attributes == ("appearance",):
        return "a photo of a <appearance> object"
    return f"a photo of a {placeholder(attributes[0] if len(attributes) == 1 else WHOLE)}"


def token_masks(prompts: PromptEncoder, texts: Sequence[str], counts: Mapping[str, int]) -> dict[str, Tensor]:
    """Attribute -> (B, T), 1 at the tokens of its placeholder; those of `<concept>` are the attributes' in their order.

    Args:
        counts: placeholder -> K.
    """
    masks = {attribute: torch.zeros(len(texts), prompts.max_length) for attribute in ATTRIBUTES}
    for row, text in enumerate(texts):
        for name, position in prompts.tokenize(text, counts).slots:
            for attribute in ATTRIBUTES:
                if name in (placeholder(attribute), placeholder(WHOLE)):
                    size = counts.get(placeholder(attribute), 0)
                    masks[attribute][row, position : position + size] = 1
                    position += size
    return masks


@dataclass(eq=False)
class Concept:
    """Word vectors per attribute and cell.

    Attributes:
        vectors: attribute -> (L, S, K, D), what replaces the placeholder; see `placement`.
        anchors: attribute -> (K, D), the ordinary words that the vectors depart from.
        space: the layers and stages that L and S stand for.
        base_model: name of the backbone it was made for.
        text_hash: `Backbone.text_hash` of that backbone.
        license: of the reference image, if known.
        gates: attribute -> (L, S) in [0, 1], how much of it each cell takes (already applied to the vectors).
        notes: free strings, such as the method's name.
        extras: tensors that the U-Net takes besides words, such as the image tokens of an adapter.
        placement: "words", the vectors enter the text encoder; or "states", it reads the anchors, and what the vectors
            differ from them by is added to its hidden states.

    Raises:
        UserError: shapes that do not fit the space or each other, or values that are not finite.
    """

    vectors: dict[str, Tensor]
    anchors: dict[str, Tensor]
    space: ConditioningSpace
    base_model: str
    text_hash: str
    license: str = ""
    gates: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    extras: dict[str, Tensor] = field(default_factory=dict)
    placement: str = "words"

    def __post_init__(self) -> None:
        order = [name for name in ATTRIBUTES if name in self.vectors]
        self.vectors = {name: self.vectors[name] for name in dict.fromkeys([*order, *self.vectors])}
        if not self.vectors:
            raise UserError("a concept needs the vectors of at least one attribute, but none were given")
        if self.placement not in PLACEMENTS:
            raise UserError(f"placement={self.placement!r} given; expected one of {', '.join(PLACEMENTS)}")
        cells = (self.space.num_layers, self.space.num_stages)
        for name, vectors in self.vectors.items():
            anchor, gate = self.anchors.get(name), self.gates.get(name)
            fits = vectors.ndim == 4 and vectors.shape[:2] == cells and vectors.shape[3] == self.width
            fits = fits and anchor is not None and anchor.shape == vectors.shape[2:]
            if not fits or (gate is not None and gate.shape != cells):
                shapes = [None if x is None else tuple(x.shape) for x in (vectors, anchor, gate)]
                raise UserError(
                    f"the attribute {name!r} has vectors, anchor and gate of shapes {shapes}, expected "
                    f"(L, S, K, D), (K, D) and (L, S) with L, S = {cells} and D = {self.width}: "
                    "make the concept again"
                )
            if not torch.isfinite(vectors).all():
                raise UserError(f"the vectors of {name!r} are not finite numbers: make the concept again")
        if any(not torch.isfinite(value).all() for value in self.extras.values()):
            raise UserError("the concept's extras are not finite numbers: make the concept again")

    @property
    def attributes(self) -> tuple[str, ...]:
        return tuple(self.vectors)

    @property
    def width(self) -> int:
        """D, width of the text encoder."""
        return next(iter(self.vectors.values())).shape[-1]

    def placeholders(self, name: str | None = None) -> dict[str, Tensor]:
        """Placeholder -> (1, L, S, K, D), or (1, L, S, K, 2, D) by `placement`, for `PromptEncoder.encode`.

        `<concept>` is all attributes one behind the other, where there is more than one.

        Args:
            name: such as "mug", for `<mug-shape>`, `<mug-appearance>` and, for all of them, `<mug>`.
        """
        prefix = f"{name}-" if name else ""
        result = {
            placeholder(prefix + attribute): place(vectors[None], self.anchors[attribute], self.placement)
            for attribute, vectors in self.vectors.items()
        }
        if name or len(self.vectors) > 1:
            result.setdefault(placeholder(name or WHOLE), torch.cat(list(result.values()), dim=3))
        return result

    def scaled(self, strength: float | Mapping[str, float]) -> "Concept":
        """Move the vectors between their anchor words (0) and themselves (1), or beyond.

        Args:
            strength: for all attributes, or for some by name; the others stay.

        Raises:
            UserError: an attribute that the concept lacks.
        """
        if not isinstance(strength, Mapping):
            strength = dict.fromkeys(self.vectors, strength)
        self._require(*strength)
        moved = {
            name: torch.lerp(self.anchors[name].to(self.vectors[name]), self.vectors[name], float(value))
            for name, value in strength.items()
        }
        return replace(self, vectors=self.vectors | moved)

    def only(self, *attributes: str) -> "Concept":
        """The concept with these attributes alone.

        Raises:
            UserError: an attribute that the concept lacks.
        """
        self._require(*attributes)
        parts = {key: getattr(self, key) for key in ("vectors", "anchors", "gates")}
        kept = {key: {a: value[a] for a in attributes if a in value} for key, value in parts.items()}
        return replace(self, **kept)

    @staticmethod
    def combine(**sources: "Concept") -> "Concept":
        """One concept out of several: `Concept.combine(shape=a, appearance=b)`.

        Raises:
            UserError: a source lacks its attribute, or two were made for different backbones, spaces or placements.
        """
        if not sources:
            raise UserError("nothing was given to combine; expected such as shape=a, appearance=b")
        first = next(iter(sources.values()))
        parts = {"vectors": {}, "anchors": {}, "gates": {}}
        for name, source in sources.items():
            first._require_same_kind(source)
            for key, value in parts.items():
                value |= getattr(source.only(name), key)
        notes = {f"{name}.{key}": note for name, c in sources.items() for key, note in c.notes.items()}
        extras = {key: value for source in sources.values() for key, value in source.extras.items()}
        return replace(first, **parts, notes=notes, extras=extras, license=_join_licenses(*sources.values()))

    def blend(self, other: "Concept", weight: float | Tensor) -> "Concept":
        """This concept at weight 0, the other at 1, linear between.

        Args:
            weight: a number, one per layer (L), or one per cell (L, S).

        Raises:
            UserError: other attributes, sizes, backbone, space or placement.
        """
        self._require_same_kind(other)
        if {k: v.shape for k, v in self.vectors.items()} != {k: v.shape for k, v in other.vectors.items()}:
            raise UserError(
                f"concepts with {_sizes(self)} and {_sizes(other)} cannot be blended: take the attributes "
                "that they share (only) or make both with the same encoder"
            )
        mean = float(torch.as_tensor(weight).mean())  # anchors and gates have no axes to weigh by
        shared_gates = [name for name in self.gates if name in other.gates]
        return replace(
            self,
            vectors={k: blend(v[None], other.vectors[k][None].to(v), weight)[0] for k, v in self.vectors.items()},
            anchors={k: torch.lerp(v, other.anchors[k].to(v), mean) for k, v in self.anchors.items()},
            gates={k: torch.lerp(self.gates[k], other.gates[k].to(self.gates[k]), mean) for k in shared_gates},
            license=_join_licenses(self, other),
        )

    def compare(self, other: "Concept") -> dict[str, float]:
        """Attribute -> cosine similarity of the two concepts' vectors, mean over cells, for what both have.

        Raises:
            UserError: another backbone, space or placement, or another number of vectors.
        """
        self._require_same_kind(other)
        result = {}
        for name in self.vectors:
            if name not in other.vectors:
                continue
            a, b = self.vectors[name].float(), other.vectors[name].float()
            if a.shape != b.shape:
                raise UserError(f"{name!r} has {a.shape[2]} vectors in one concept, {b.shape[2]} in the other")
            result[name] = torch.cosine_similarity(a, b.to(a.device), dim=-1).mean().item()
        return result

    def check_fits(self, space: ConditioningSpace, width: int, text_hash: str | None = None) -> None:
        """Refuse a backbone that the concept was not made for. An axis of one cell fits any: it is shared.

        Raises:
            UserError: other layers, stages, width or text encoder; names both sides.
        """
        same_layers = set(self.space.layer_names) == set(space.layer_names)
        same_cells = self.space.num_layers == 1 or self.space.cells == space.cells
        same_stages = self.space.num_stages == 1 or self.space.stage_bounds == space.stage_bounds
        same_text = text_hash in (None, self.text_hash) and width == self.width
        if not (same_layers and same_cells and same_stages and same_text):
            ours = _describe(self.space, self.width, self.text_hash)
            theirs = _describe(space, width, text_hash or "not given")
            raise UserError(
                f"the concept was made for {self.base_model!r} with {ours}, but the backbone has {theirs}: "
                "use the backbone it was made for, or make the concept again with this one"
            )

    def save(self, path: str | os.PathLike) -> None:
        """Write the concept's file; a file in its place is replaced at once or not at all."""
        tensors = {
            f"{key}.{name}": value.detach().cpu().contiguous().clone()
            for key in PARTS
            for name, value in getattr(self, key).items()
        }
        metadata = {
            "format": FORMAT, "version": VERSION, "attributes": json.dumps(self.attributes),
            "base_model": self.base_model, "text_hash": self.text_hash, "license": self.license,
            "notes": json.dumps(self.notes), "placement": self.placement, **self.space.to_metadata(),
        }  # fmt: skip
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            save_file(tensors, partial, metadata)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Concept":
        """Read a concept's file. Only safetensors are read: nothing in the file can run.

        Raises:
            UserError: no such file, another kind of file, another version, or contents that do not fit.
        """
        if not Path(path).is_file():
            raise UserError(f"there is no concept file at '{path}': check the path")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError) as error:
            raise UserError(f"'{path}' is no safetensors file ({error}): give a concept file") from error
        if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
            found = f"{metadata.get('format')!r} version {metadata.get('version')!r}"
            raise UserError(f"'{path}' holds {found}, expected {FORMAT!r} version {VERSION!r}: give a concept file")
        try:
            parts = {key: {} for key in PARTS}
            for key, tensor in tensors.items():
                kind, name = key.split(".", 1)
                parts[kind][name] = tensor
            parts["vectors"] = {name: parts["vectors"][name] for name in json.loads(metadata["attributes"])}
            plain = {key: metadata[key] for key in ("base_model", "text_hash", "license")}
            plain["placement"] = metadata.get("placement", "words")  # older files have none
            notes = {str(key): str(value) for key, value in json.loads(metadata["notes"]).items()}
            return cls(**parts, **plain, notes=notes, space=ConditioningSpace.from_metadata(metadata))
        except UserError as error:
            raise UserError(f"the concept file '{path}' is damaged: {error}") from error
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"the concept file '{path}' is damaged ({error!r}): make it again") from error

    def save_textual_inversion(self, path: str | os.PathLike, attribute: str, token: str | None = None) -> None:
        """Write one attribute of a P (1 x 1) concept as diffusers' `load_textual_inversion` reads it.

        Raises:
            UserError: the space has more than one cell, the attribute is not there, or it is no word.
        """
        self._require(attribute)
        if self.placement != "words":
            raise UserError("the concept is added behind the text encoder, a textual inversion is a word: no file fits")
        if (self.space.num_layers, self.space.num_stages) != (1, 1):
            raise UserError(
                f"the concept fills {self.space.num_layers} layer cells x {self.space.num_stages} stages, "
                "but a textual inversion has one cell: make it in the space P"
            )
        save_file({token or placeholder(attribute): self.vectors[attribute][0, 0].detach().cpu().clone()}, path)

    def _require(self, *attributes: str) -> None:
        for name in attributes:
            if name not in self.vectors:
                raise UserError(f"the concept has no {name!r}; it has {', '.join(self.attributes)}")

    def _require_same_kind(self, other: "Concept") -> None:
        if (self.space, self.width, self.text_hash) != (other.space, other.width, other.text_hash):
            ours, theirs = (f"{c.base_model!r} with {_describe(c.space, c.width, c.text_hash)}" for c in (self, other))
            raise UserError(f"one concept is for {ours}, the other for {theirs}: make both with one backbone")
        if self.placement != other.placement:
            both = f"{self.placement!r}, the other {other.placement!r}"
            raise UserError(f"one concept has the placement {both}: make both with one encoder")


def _describe(space: ConditioningSpace, width: int, text_hash: str) -> str:
    """One side of a mismatch, in words."""
    names = space.layer_names
    return (
        f"{space.num_layers} layer cells over {len(names)} layers ({names[0]} ...), "
        f"stages {space.stage_bounds}, width {width}, text encoder {text_hash}"
    )


def _sizes(concept: Concept) -> str:
    return ", ".join(f"{name} {tuple(vectors.shape)}" for name, vectors in concept.vectors.items())


def _join_licenses(*concepts: Concept) -> str:
    return "; ".join(dict.fromkeys(concept.license for concept in concepts if concept.license))
