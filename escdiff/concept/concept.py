"""The concept: what was read from a reference, as word vectors for every cell of a conditioning space.

A concept is a small safetensors file with string metadata; reading one never runs code.
Legend: L layer cell, S stage, K vectors per attribute, D width of the text encoder.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from escdiff.concept.placeholders import ATTRIBUTES, WHOLE, placeholder
from escdiff.conditioning.fuse import Fusion
from escdiff.conditioning.grid import blend
from escdiff.conditioning.space import ConditioningSpace
from escdiff.support.errors import UserError
from escdiff.support.files import save_tensors
from escdiff.support.modelspec import modelspec
from escdiff.support.names import portable

FORMAT, VERSION = "escdiff-concept", "1"
LAYERS, TEXT_ENCODER = "layers", "text encoder"
IMAGE_TOKENS = "image_embeds"  # in `extras`: (N, W) or (W,), what an image adapter of the U-Net attends to
PARTS = ("vectors", "anchors", "gates", "extras", "fused")  # of the file
BY_ATTRIBUTE = ("vectors", "anchors", "gates", "fused", "words")


@dataclass(eq=False)
class Concept:
    """Word vectors per attribute and cell.

    Attributes:
        vectors: attribute -> (L, S, K, D), what replaces the placeholder.
        anchors: attribute -> (K, D), the ordinary words that the vectors depart from.
        space: the layers and stages that L and S stand for.
        base_model: name of the backbone it was made for.
        text_hash: `Backbone.text_hash` of that backbone.
        license: of the reference image, if known.
        gates: attribute -> (L, S) in [0, 1], how much of it each cell takes (already applied to the vectors).
        notes: free strings, such as the method's name.
        extras: tensors that the U-Net takes besides words, such as the image tokens of an adapter.
        fused: attribute -> (E,), what enters behind the text encoder at the last token of its vectors, by the f that
            its weights bring (`escdiff.conditioning.fuse`). The gate, 1 without, is the share of it.
        branches: "encoder" -> its name and "hash" -> of its branches, which the U-Net must have (see
            `escdiff.backbone.branches`); empty for an encoder or a method without.
        family: of the backbone, by name, see `escdiff.backbone.family`.
        words: attribute -> ordinary words that the text encoders read in its place, of a family whose vectors stand in
            the layers; empty where the anchors are words' own embeddings.
        entry: where the vectors enter, `LAYERS` or `TEXT_ENCODER`; left out, the layers of a concept with `words`.

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
    fused: dict[str, Tensor] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    family: str = "sd"
    words: dict[str, str] = field(default_factory=dict)
    entry: str = ""

    def __post_init__(self) -> None:
        self.entry = self.entry or (LAYERS if self.words else TEXT_ENCODER)
        order = [name for name in ATTRIBUTES if name in self.vectors]
        self.vectors = {name: self.vectors[name] for name in dict.fromkeys([*order, *self.vectors])}
        if not self.vectors:
            raise UserError("a concept needs the vectors of at least one attribute, but none were given")
        for name in self.vectors:
            placeholder(name)  # which refuses names that cannot stand in a prompt
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
        if any(not torch.isfinite(value).all() for value in (*self.extras.values(), *self.fused.values())):
            raise UserError("the concept's extras are not finite numbers: make the concept again")
        if wrong := [name for name, value in self.fused.items() if name not in self.vectors or value.ndim != 1]:
            raise UserError(f"{wrong[0]!r} is fused without a word, or by no vector: make the concept again")

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the attributes that it has vectors for."""
        return tuple(self.vectors)

    @property
    def title(self) -> str:
        """A name to show: its reference's, or its attributes."""
        names = [Path(note).stem for key, note in self.notes.items() if key.split(".")[-1] == "reference"]
        return ", ".join(dict.fromkeys(names)) or ", ".join(self.attributes)

    @property
    def width(self) -> int:
        """D, width of the text encoder."""
        return next(iter(self.vectors.values())).shape[-1]

    def placeholders(self, name: str | None = None) -> dict[str, Tensor]:
        """Placeholder -> (1, L, S, K, D), for `PromptEncoder.encode`.

        `<concept>` is all attributes one behind the other, where there is more than one.

        Args:
            name: such as "mug", for `<mug-shape>`, `<mug-appearance>` and, for all of them, `<mug>`.
        """
        prefix = f"{name}-" if name else ""
        own = {a: _as_one(vectors) if a in self.fused else vectors for a, vectors in self.vectors.items()}
        result = {placeholder(prefix + attribute): vectors[None] for attribute, vectors in own.items()}
        if name or len(self.vectors) > 1:
            result.setdefault(placeholder(name or WHOLE), torch.cat(list(result.values()), dim=3))
        return result

    def fusions(self, name: str | None = None) -> dict[str, list[Fusion]]:
        """Placeholder, as of `placeholders` -> what is fused at its tokens."""
        prefix, found, whole, first = f"{name}-" if name else "", {}, [], 0
        for attribute, vectors in self.vectors.items():
            if attribute in self.fused:
                gate = self.gates.get(attribute, torch.ones(vectors.shape[:2]))
                fusion = Fusion(vectors.shape[2] - 1, self.fused[attribute][None], gate[None])
                found[placeholder(prefix + attribute)] = [fusion]
                whole.append(replace(fusion, offset=first + fusion.offset))
            first += vectors.shape[2]
        if whole and (name or len(self.vectors) > 1):
            found.setdefault(placeholder(name or WHOLE), whole)
        return found

    def scaled(self, strength: float | Tensor | Mapping[str, float | Tensor]) -> "Concept":
        """Move the vectors between their anchor words (0) and themselves (1), or beyond; of what is fused, the share.

        Args:
            strength: for all attributes, or for some by name; the others stay. A number, one per layer (L), or one per
                cell (L, S).

        Raises:
            UserError: an attribute that the concept lacks.
        """
        if not isinstance(strength, Mapping):
            strength = dict.fromkeys(self.vectors, strength)
        self._require(*strength)
        moved = {
            name: blend(self.anchors[name].to(vectors).expand_as(vectors)[None], vectors[None], value)[0]
            for name, value in strength.items()
            for vectors in (self.vectors[name],)
        }
        shares = {}
        for name in strength.keys() & self.fused.keys():
            gate = self.gates.get(name, torch.ones(self.vectors[name].shape[:2]))
            shares[name] = blend(torch.zeros_like(gate)[None], gate[None], strength[name])[0]
        return replace(self, vectors=self.vectors | moved, gates=self.gates | shares)

    def only(self, *attributes: str) -> "Concept":
        """The concept with these attributes alone.

        Raises:
            UserError: an attribute that the concept lacks.
        """
        self._require(*attributes)
        parts = {key: getattr(self, key) for key in BY_ATTRIBUTE}
        kept = {key: {a: value[a] for a in attributes if a in value} for key, value in parts.items()}
        return replace(self, **kept)

    @staticmethod
    def combine(**sources: "Concept") -> "Concept":
        """One concept out of several: `Concept.combine(shape=a, appearance=b)`.

        Raises:
            UserError: a source lacks its attribute, or two were made for different backbones or spaces.
        """
        if not sources:
            raise UserError("nothing was given to combine; expected such as shape=a, appearance=b")
        first = next(iter(sources.values()))
        parts = {key: {} for key in BY_ATTRIBUTE}
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
            UserError: other attributes, sizes, backbone or space.
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
            fused={k: torch.lerp(v, other.fused[k].to(v), mean) for k, v in self.fused.items() if k in other.fused},
            license=_join_licenses(self, other),
        )

    def compare(self, other: "Concept") -> dict[str, float]:
        """Attribute -> cosine similarity of the two concepts' vectors, mean over cells, for what both have.

        Raises:
            UserError: another backbone or space, or another number of vectors.
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

    def save(self, path: str | os.PathLike, dtype: torch.dtype | None = None) -> None:
        """Write the concept's file; a file in its place is replaced at once or not at all.

        Args:
            dtype: `torch.float16` halves the file; it is read as float32 again. Without, the numbers stay as they are.

        Raises:
            UserError: numbers that the type cannot hold.
        """
        tensors = {f"{key}.{name}": value for key in PARTS for name, value in getattr(self, key).items()}
        if dtype is not None:
            tensors = {key: value.to(dtype) for key, value in tensors.items()}
            if not all(torch.isfinite(value).all() for value in tensors.values()):
                raise UserError(f"the concept has numbers that {dtype} cannot hold: save it without a dtype")
        metadata = {
            "format": FORMAT, "version": VERSION, "attributes": json.dumps(self.attributes),
            "base_model": portable(self.base_model), "text_hash": self.text_hash, "license": self.license,
            "notes": json.dumps(self.notes), "branches": json.dumps(self.branches), "family": self.family,
            "words": json.dumps(self.words), "entry": self.entry,
            "rounded": json.dumps(dtype is not None), **self.space.to_metadata(),
        }  # fmt: skip
        spec = modelspec("escdiff-concept", self.width, self.title, metadata["base_model"], self.license)
        save_tensors(path, tensors, metadata | spec)

    def as_stored(self, dtype: torch.dtype) -> "Concept":
        """The concept as a file of this type gives it back, so that what is painted now is what the file paints."""
        parts = {key: {n: value.to(dtype).to(value.dtype) for n, value in getattr(self, key).items()} for key in PARTS}
        return replace(self, **parts)

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
            if json.loads(metadata.get("rounded", "false")):
                parts = {kind: {name: tensor.float() for name, tensor in part.items()} for kind, part in parts.items()}
            parts["vectors"] = {name: parts["vectors"][name] for name in json.loads(metadata["attributes"])}
            plain = {key: metadata[key] for key in ("base_model", "text_hash", "license")}
            plain["branches"] = dict(json.loads(metadata.get("branches", "{}")))  # older files have none
            notes = {str(key): str(value) for key, value in json.loads(metadata["notes"]).items()}
            if "family" in metadata:
                plain |= {"family": metadata["family"], "words": dict(json.loads(metadata["words"]))}
                plain["entry"] = metadata.get("entry", "")
            else:  # an older file, where a transformer's says them in its notes
                said = {a: notes.pop(f"words.{a}") for a in parts["vectors"] if f"words.{a}" in notes}
                plain |= {"family": notes.pop("family", "sd"), "words": said}
                if said:
                    notes.pop("entry", None)
            if metadata.get("placement", "words") != "words" and plain["family"] == "sd":
                raise UserError("its vectors act behind the text encoder, which was given up; make it again")
            return cls(**parts, **plain, notes=notes, space=ConditioningSpace.from_metadata(metadata))
        except UserError as error:
            raise UserError(f"the concept file '{path}' is damaged: {error}") from error
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise UserError(f"the concept file '{path}' is damaged ({error!r}): make it again") from error

    def _require(self, *attributes: str) -> None:
        for name in attributes:
            if name not in self.vectors:
                raise UserError(f"the concept has no {name!r}; it has {', '.join(self.attributes)}")

    def _require_same_kind(self, other: "Concept") -> None:
        kinds = [(c.space, c.width, c.text_hash, c.entry) for c in (self, other)]
        if kinds[0] != kinds[1]:
            ours, theirs = (
                f"{c.base_model!r} with {_describe(*kind)}" for c, kind in zip((self, other), kinds, strict=True)
            )
            raise UserError(f"one concept is for {ours}, the other for {theirs}: make both with one backbone")
        ours, theirs = (c.branches.get("hash") for c in (self, other))
        if ours != theirs:
            both = " and ".join(f"{c.branches['encoder']!r}" if c.branches else "none" for c in (self, other))
            raise UserError(f"the concepts need the branches of different encoders ({both}): make both with one")


def _as_one(vectors: Tensor) -> Tensor:
    """Vectors (L, S, K, D) that are equal in all cells, as a view of the first one: it is encoded once."""
    first = vectors[:1, :1]
    return first.expand_as(vectors) if (vectors == first).all() else vectors


def _describe(space: ConditioningSpace, width: int, text_hash: str, entry: str = "") -> str:
    """One side of a mismatch, in words."""
    names = space.layer_names
    return (
        f"{space.num_layers} layer cells over {len(names)} layers ({names[0]} ...), "
        f"stages {space.stage_bounds}, width {width}, text encoder {text_hash}{entry and f', vectors in the {entry}'}"
    )


def _sizes(concept: Concept) -> str:
    return ", ".join(f"{name} {tuple(vectors.shape)}" for name, vectors in concept.vectors.items())


def _join_licenses(*concepts: Concept) -> str:
    return "; ".join(dict.fromkeys(concept.license for concept in concepts if concept.license))
