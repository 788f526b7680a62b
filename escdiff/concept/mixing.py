"""Style mixing in any per-layer space: the shape of one concept, the appearance of another.

P+ (arXiv 2303.09522, section 5) gives the layers near the U-Net's middle to the shape and the others to the appearance.
Legend: L layer cell, S stage.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from escdiff.concept import ATTRIBUTES, WHOLE, Concept
from escdiff.conditioning import ConditioningSpace
from escdiff.conditioning.grid import blend
from escdiff.conditioning.space import EXECUTION_ORDER
from escdiff.support.errors import UserError

# Of SD's 16 layers, as the literature's hand-made splits have it (DEADiff; P+ section 5).
SHAPE_LAYERS = range(4, 9)
# How MATTE's attributes count as ours.
ROLES = {"shape": ("object",), "appearance": ("color", "style")}
CLOSED = 1e-3  # a gate below this has hidden its residual
HOW = "hand, gates or a number from 0 (all appearance) to 1 (all shape)"


def shape_share(
    space: ConditioningSpace, how: str | float = "hand", gates: Mapping[str, Tensor] | None = None
) -> Tensor:
    """(L, S) in [0, 1]: how much of each cell the shape takes.

    Args:
        how: "hand": the layers `SHAPE_LAYERS`; "gates": what learned gates say, see `gates`; or a slider's position,
            the share of layers that the shape takes, growing outwards from the middle of `SHAPE_LAYERS`.
        gates: "shape" and "appearance" -> (L, S), or (L, 1) for all stages, in [0, 1], as the encoder has them.

    Raises:
        UserError: another word, a position beyond 0 and 1, or no gates of this space.
    """
    size, count = (space.num_layers, space.num_stages), len(space.layer_names)
    if how == "gates":
        if not gates or any(a not in gates or gates[a].shape not in (size, (size[0], 1)) for a in ATTRIBUTES):
            what = f"the split by gates needs learned gates of {size[0]} layers x {size[1]} stages"
            raise UserError(f"{what}; give those of an encoder of this space, or say hand")
        own = gates["shape"].float()
        return (own / (own + gates["appearance"].float()).clamp_min(1e-6)).expand(size)
    number = {name: i * 16 / count for i, name in enumerate(_in_order(space))}  # on the scale of SD's 16
    if how == "hand":
        inside = {name: float(SHAPE_LAYERS.start <= i < SHAPE_LAYERS.stop) for name, i in number.items()}
    else:
        share = _position(how)
        middle = (SHAPE_LAYERS.start + SHAPE_LAYERS.stop - 1) / 2
        order = sorted(number, key=lambda name: abs(number[name] - middle))
        inside = {name: min(max(share * count - rank, 0.0), 1.0) for rank, name in enumerate(order)}
    share_L = torch.tensor([sum(inside[name] for name in cell) / len(cell) for cell in space.cells])
    return share_L[:, None].repeat(1, space.num_stages)


def split(concept: Concept, how: str | float = "hand", gates: Mapping[str, Tensor] | None = None) -> Concept:
    """A concept of one placeholder, with `shape` and `appearance` besides.

    The shape is the concept in the shape's cells and its anchor word elsewhere, the appearance the other way round.
    Where all layers share a cell there is nothing to split: both are the whole. MATTE's attributes are sorted by
    `ROLES`. A concept that has both attributes comes back as it is.

    Raises:
        UserError: see `shape_share`; or a concept with other attributes, or with one of the two alone.
    """
    if set(ATTRIBUTES) <= set(concept.attributes):
        return concept
    if len(concept.attributes) == 1 and concept.attributes[0] in ATTRIBUTES:
        what = f"the concept has the {concept.attributes[0]} of its reference alone"
        raise UserError(f"{what}; make one of the picture with shape= and appearance=, or leave the other out")
    if all(part in concept.vectors for parts in ROLES.values() for part in parts):
        added = {key: {a: torch.cat([getattr(concept, key)[p] for p in parts], dim=axis) for a, parts in ROLES.items()}
                 for key, axis in (("vectors", 2), ("anchors", 0))}  # fmt: skip
        added["vectors"][WHOLE] = torch.cat(list(concept.vectors.values()), dim=2)
        added["anchors"][WHOLE] = torch.cat([concept.anchors[a] for a in concept.attributes])
    else:
        if len(concept.attributes) != 1:
            found = ", ".join(concept.attributes)
            raise UserError(
                f"a concept with {found} cannot be split into shape and appearance; take one of them (only)"
            )
        vectors, anchor = (next(iter(part.values())) for part in (concept.vectors, concept.anchors))
        word = anchor.to(vectors).expand_as(vectors)
        if concept.space.num_layers == 1:
            parts = dict.fromkeys(ATTRIBUTES, vectors)
        else:
            share = shape_share(concept.space, how, gates)
            parts = {
                "shape": blend(word[None], vectors[None], share)[0],
                "appearance": blend(vectors[None], word[None], share)[0],
            }
        added = {"vectors": parts | {WHOLE: vectors}, "anchors": dict.fromkeys((*ATTRIBUTES, WHOLE), anchor)}
    fused, gates = {}, {}
    for name, vector in concept.fused.items():  # which is not taken apart either
        fused, gate = dict.fromkeys(added["vectors"], vector), concept.gates.get(name)
        gates = {} if gate is None else dict.fromkeys(added["vectors"], gate)
    words = dict.fromkeys(added["vectors"], next(iter(concept.words.values()))) if concept.words else {}
    return replace(concept, **added, gates=gates, fused=fused, words=words)


def mix(
    shape: Concept, appearance: Concept, how: str | float = "hand", gates: Mapping[str, Tensor] | None = None
) -> Concept:
    """The shape of one concept with the appearance of another.

    Two concepts of one placeholder share it, each cell blended by `shape_share`, as in P+. Otherwise the result has the
    attribute `shape` of one and `appearance` of the other, as they are or of split concepts.

    Args:
        gates: learned gates for `how="gates"`, see `escdiff.encoder.checkpoint.read_gates`.

    Raises:
        UserError: see `shape_share`; or concepts of different backbones or spaces.
    """
    sources = {"shape": shape, "appearance": appearance}
    whole = len(shape.attributes) == 1 and shape.attributes[0] not in ATTRIBUTES
    if whole and shape.attributes == appearance.attributes and shape.space.num_layers > 1:
        if shape.space != appearance.space:
            return shape.blend(appearance, 0.0)  # which says what is different
        share = shape_share(shape.space, how, gates)
        notes = {f"{name}.{key}": note for name, source in sources.items() for key, note in source.notes.items()}
        return replace(appearance.blend(shape, share), notes=notes)
    found = Concept.combine(**{a: c if a in c.attributes else split(c, how, gates) for a, c in sources.items()})
    for name in shape.extras.keys() & appearance.extras.keys():
        one, two = shape.extras[name], appearance.extras[name].to(shape.extras[name])
        # Pictures that are not taken apart: tokens of both, or the mean where there is one.
        found.extras[name] = torch.cat([one, two]) if one.ndim > 1 else (one + two) / 2
    return found


def regate(concept: Concept, gates: Mapping[str, Tensor]) -> Concept:
    """The concept with other gates than those its vectors were made with.

    The vector of a cell is `anchor + gate * residual`; what a closed gate hid stays hidden.

    Args:
        gates: attribute -> (L, S) in [0, 1].

    Raises:
        UserError: an attribute without gates of its own, or gates of another shape.
    """
    vectors, own = dict(concept.vectors), dict(concept.gates)
    for name, gate in gates.items():
        if name not in own or own[name].shape != gate.shape:
            found = tuple(own[name].shape) if name in own else "none"
            raise UserError(f"gates {tuple(gate.shape)} given for {name!r}, the concept has {found}; use its encoder's")
        anchor = concept.anchors[name].to(vectors[name])
        ratio = torch.where(own[name] > CLOSED, gate / own[name].clamp_min(CLOSED), 0)[..., None, None]
        vectors[name] = torch.where(ratio == 1, vectors[name], anchor + ratio.to(anchor) * (vectors[name] - anchor))
        own[name] = gate.to(own[name])
    return replace(concept, vectors=vectors, gates=own)


def check_how(how: str | float) -> None:
    """Refuse what is no way to split or mix.

    Raises:
        UserError: see `shape_share`.
    """
    if how not in ("hand", "gates"):
        _position(how)


def _position(how: str | float) -> float:
    try:
        value = float(how)
    except (TypeError, ValueError):
        value = -1.0
    if not 0 <= value <= 1:
        raise UserError(f"mix={how} given; expected {HOW}")
    return value


def _in_order(space: ConditioningSpace) -> list[str]:
    """All layer names in execution order, whatever cells they are in; a transformer's spaces are in that order."""
    if any(name.split(".")[0] not in EXECUTION_ORDER for name in space.layer_names):
        return list(space.layer_names)

    def place(name: str) -> tuple:
        first, *rest = name.split(".")
        return EXECUTION_ORDER.index(first), [int(part) for part in rest if part.isdigit()]

    return sorted(space.layer_names, key=place)
