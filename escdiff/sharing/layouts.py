"""Concepts in the layouts of other programs: textual inversion (P), and per-layer embeddings (P+, XTI).

Files of all layouts are safetensors. Legend: L layer cell, K vectors per layer, D width of the text encoder.

| layout | tensors | read by |
|---|---|---|
| ti | one, (K, D), under the token | diffusers' `load_textual_inversion`, ComfyUI, A1111 |
| emb_params | one, (K, D), under this name | A1111, ComfyUI, InvokeAI |
| clip | `clip_l` (K, 768) and `clip_g` (K, 1280), one per text encoder of SDXL | ComfyUI, A1111, InvokeAI, diffusers |
| p+ | TOKEN-0 to TOKEN-15 in execution order, (D) each, or (K, D) | the public P+ ports |
| xti | IN01 IN02 IN04 IN05 IN07 IN08 MID OUT03 ... OUT11, (K, 768) each | kohya's `train_textual_inversion_XTI.py` |

A1111's own `string_to_param` is read only: it is a pickle.
"""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from escdiff.backbone import Backbone
from escdiff.concept import Concept, placeholder
from escdiff.conditioning import ConditioningSpace
from escdiff.sharing.blocks import block_of
from escdiff.sharing.reading import read_tensors
from escdiff.support.errors import UserError
from escdiff.support.files import save_tensors
from escdiff.support.modelspec import modelspec

LAYOUTS = ("ti", "emb_params", "clip", "p+", "xti")
STRING_TO_PARAM, EMB_PARAMS = "string_to_param.", "emb_params"
TOWERS = {"clip_l": 768, "clip_g": 1280}  # key -> width of SDXL's text encoders, in the order of their vectors
NUMBERED = re.compile(r"(?P<token>.+)-(?P<layer>\d+)")
PARTS = {"input": "IN{:02}", "middle": "MID", "output": "OUT{:02}"}
# Of Stable Diffusion 1.x and 2.x, whose 16 attentions have these numbers; sorted, they are in execution order.
XTI = ("IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "MID", *(f"OUT{number:02}" for number in range(3, 12)))
# The first port's U-Net takes the next token once per *block*: three down, the middle, three up. So each block's layers
# saw one token, the first seven of sixteen were trained and nine never left their initial word.
PER_BLOCK = (0, 0, 1, 1, 2, 2, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6)


def export_embeddings(
    concept: Concept, path: str | os.PathLike, attribute: str, layout: str = "ti", token: str | None = None,
    widths: Sequence[int] = tuple(TOWERS.values()),
) -> None:  # fmt: skip
    """Write one attribute of a concept, see the module's text.

    Args:
        layout: one of `LAYOUTS`; "p+" and "xti" want a concept with a cell per layer, the others one of a single cell.
        token: the pseudo-word there; the attribute's placeholder without.
        widths: of the text encoders, for "clip".

    Raises:
        UserError: another layout, a concept of another space, with weights besides its words, or without the
            attribute; widths that do not add up.
    """
    if layout not in LAYOUTS:
        raise UserError(f"layout={layout!r} given; expected one of {', '.join(LAYOUTS)}")
    per_layer, token = layout in ("p+", "xti"), token or placeholder(attribute)
    transformers = {name.split(".transformer_blocks.")[0] for name in concept.space.layer_names}
    rows = _one_attribute(concept, attribute, cells=len(transformers) if per_layer else 1)
    if layout == "p+":
        tensors = {f"{token}-{i}": row[0] if len(row) == 1 else row for i, row in enumerate(rows)}
    elif layout == "xti":
        tensors = dict(zip(xti_keys(concept.space), rows, strict=True))
    elif layout == "clip":
        if sum(widths) != concept.width or len(widths) != len(TOWERS):
            problem = f"widths {tuple(widths)} given for a concept of width {concept.width}"
            raise UserError(f"{problem}; expected those of two encoders")
        tensors = dict(zip(TOWERS, rows[0].split(list(widths), dim=-1), strict=True))
    else:
        tensors = {token if layout == "ti" else EMB_PARAMS: rows[0]}
    spec = modelspec("textual-inversion", concept.width, token, concept.base_model, concept.license, "diffusers")
    save_tensors(path, tensors, {"format": "pt"} | spec)


def import_embeddings(
    path: str | os.PathLike, backbone: Backbone, attribute: str = "concept", word: str = "object",
    per_block: bool = False, trust_pickle: bool = False,
) -> Concept:  # fmt: skip
    """Read a file of any of the layouts, told apart by its tensors' names.

    Args:
        backbone: that the embeddings were learned with.
        attribute: the name that the vectors get here.
        word: what they departed from, for `Concept.scaled`.
        per_block: a P+ file comes from the port that gave one token to each *block*: its tokens 0 to 6 are spread over
            the layers that saw them, as in its own pictures. Taken as they are numbered, its tokens 7 to 15 are the
            untrained initial word and most layers get another layer's vector.
        trust_pickle: `.bin` and `.pt` files are pickles; read with PyTorch's `weights_only` reader.

    Raises:
        UserError: no such file, a pickle without `trust_pickle`, another layout, another number of layers or width.
    """
    tensors, _ = read_tensors(Path(path), trust_pickle)
    layout, space = layout_of({name: tuple(value.shape) for name, value in tensors.items()}), backbone.p_plus()
    if layout is None:
        some = ", ".join(sorted(tensors)[:2])
        problem = f"'{path}' has {len(tensors)} tensors ({some}, ...)"
        raise UserError(
            f"{problem}; expected TOKEN-0 to TOKEN-{space.num_layers - 1} of one token, kohya's {XTI[0]} to {XTI[-1]}, "
            "or a textual inversion"
        )
    rows = [value.reshape(-1, value.shape[-1]).float() for value in _ordered(tensors, layout)]
    if layout not in ("p+", "xti"):
        space = ConditioningSpace.p(backbone.unet)
    elif len(rows) != space.num_layers or (layout == "xti" and xti_keys(space) != XTI):
        problem = f"'{path}' has the vectors of {len(rows)} layers"
        raise UserError(f"{problem}; expected TOKEN-0 to TOKEN-{space.num_layers - 1}, as this backbone has layers")
    if {row.shape for row in rows} != {rows[0].shape} or rows[0].shape[-1] != backbone.width:
        sizes = sorted({tuple(row.shape) for row in rows})
        raise UserError(f"'{path}' has vectors of {sizes}; expected width {backbone.width}")
    if per_block:
        if layout != "p+" or len(rows) != len(PER_BLOCK):
            raise UserError(
                f"the port's files are P+ of {len(PER_BLOCK)} layers, this is not; read it without per_block"
            )
        rows = [rows[i] for i in PER_BLOCK]
    vectors = torch.stack(rows)[:, None]
    anchor = backbone.prompts.word_embedding(word, vectors.shape[2]).float().cpu()
    notes = {"source": Path(path).name, "method": "xti" if len(rows) > 1 else "ti", "layout": layout}
    if layout == "p+":
        notes["port"] = "per block" if per_block else "per layer"
    return Concept({attribute: vectors}, {attribute: anchor}, space, backbone.name, backbone.text_hash, notes=notes)


def layout_of(shapes: Mapping[str, Sequence[int]]) -> str | None:
    """The layout, or "string_to_param", whose tensors have these names and shapes; None for no embeddings."""
    if any(name.startswith(STRING_TO_PARAM) for name in shapes):  # beside what is no vector
        return "string_to_param"
    if not shapes or any(len(shape) not in (1, 2) for shape in shapes.values()):
        return None
    matches = [NUMBERED.fullmatch(name) for name in shapes]
    if set(shapes) == set(XTI):
        return "xti"
    if len(shapes) > 1 and all(matches) and len({match["token"] for match in matches}) == 1:
        return "p+" if sorted(int(match["layer"]) for match in matches) == list(range(len(shapes))) else None
    if set(shapes) <= set(TOWERS):
        return "clip"
    if EMB_PARAMS in shapes:
        return "emb_params"
    return "ti" if len(shapes) == 1 and "weight" not in next(iter(shapes)) else None


def xti_keys(space: ConditioningSpace) -> tuple[str, ...]:
    """kohya's names of a space's layers, in execution order.

    Raises:
        UserError: layers that it has no names for; it knows those of Stable Diffusion 1.x and 2.x.
    """
    blocks = [block_of(layer) for layer in space.layer_names]
    keys = tuple(PARTS[part].format(number) for part, number, _ in blocks)
    if keys != XTI:
        problem = f"the concept is for {len(keys)} layers"
        raise UserError(f"{problem}; the layout xti is for the {len(XTI)} of Stable Diffusion 1.x and 2.x: use p+")
    return keys


def _ordered(tensors: Mapping[str, Tensor], layout: str) -> list[Tensor]:
    """One tensor per layer, or one."""
    if layout == "xti":
        return [tensors[key] for key in XTI]
    if layout == "p+":
        return [tensors[key] for key in sorted(tensors, key=lambda key: int(NUMBERED.fullmatch(key)["layer"]))]
    if layout == "clip":
        return [torch.cat([tensors[key] for key in TOWERS if key in tensors], dim=-1)]
    if layout == "emb_params":
        return [tensors[EMB_PARAMS]]
    first = next(name for name in tensors if layout == "ti" or name.startswith(STRING_TO_PARAM))
    return [tensors[first]]


def _one_attribute(concept: Concept, attribute: str, cells: int) -> Tensor:
    """(L, K, D)."""
    if concept.words:
        raise UserError(
            "the concept holds residuals for a transformer's layers; other programs' layouts hold words only"
        )
    if concept.fused:
        raise UserError("the concept is fused behind the text encoder; other programs' layouts hold words only")
    if concept.branches or concept.notes.get("adapter"):
        what = "the concept needs weights in the U-Net besides its words"
        raise UserError(f"{what}; other programs' layouts hold words only")
    vectors = concept.only(attribute).vectors[attribute].detach().cpu()
    if tuple(vectors.shape[:2]) != (cells, 1):
        raise UserError(
            f"the concept fills {vectors.shape[0]} layer cells x {vectors.shape[1]} stages; expected {cells} x 1"
        )
    return vectors[:, 0]
