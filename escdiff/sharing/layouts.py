"""Concepts in the layouts of other programs: textual inversion (P) and the public P+ files.

**Textual inversion**, as diffusers' `load_textual_inversion`, A1111 and ComfyUI read it: safetensors, one tensor (K, D)
under the token. For SDXL two tensors, `clip_l` and `clip_g`, one per text encoder.

**P+**, after the files of the public ports: safetensors, one tensor (D) per layer under `"{token}-{i}"`, with i from 0
to 15 in execution order (down, mid, up); of K vectors per layer, (K, D).
"""

import os
import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from escdiff.backbone import Backbone
from escdiff.concept import Concept, placeholder
from escdiff.errors import UserError

NUMBERED = re.compile(r"(?P<token>.+)-(?P<layer>\d+)")
# The first port's U-Net takes the next token once per *block*: three down, the middle, three up. So each block's layers
# saw one token, the first seven of sixteen were trained and nine never left their initial word.
PER_BLOCK = (0, 0, 1, 1, 2, 2, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6)


def export_textual_inversion(
    concept: Concept, path: str | os.PathLike, attribute: str, token: str | None = None, widths: tuple[int, ...] = ()
) -> None:
    """Write one attribute of a P concept.

    Args:
        token: the pseudo-word there; the attribute's placeholder without.
        widths: of SDXL's two text encoders, (768, 1280).

    Raises:
        UserError: the concept has more than one cell, or lacks the attribute; widths that do not add up.
    """
    if not widths:
        concept.save_textual_inversion(path, attribute, token)
        return
    if sum(widths) != concept.width or len(widths) != 2:
        raise UserError(f"widths {widths} given for a concept of width {concept.width}; expected those of two encoders")
    vectors = _one_attribute(concept, attribute, cells=1)[0]
    parts = vectors.split(widths, dim=-1)
    save_file({name: part.contiguous().clone() for name, part in zip(("clip_l", "clip_g"), parts, strict=True)}, path)


def export_p_plus(concept: Concept, path: str | os.PathLike, attribute: str, token: str | None = None) -> None:
    """Write one attribute of a P+ concept, see the module's text.

    Raises:
        UserError: another space than P+, or no such attribute.
    """
    vectors = _one_attribute(concept, attribute, cells=len(concept.space.layer_names))
    token = token or placeholder(attribute)
    rows = [row[0] if len(row) == 1 else row for row in vectors]
    save_file({f"{token}-{i}": row.contiguous().clone() for i, row in enumerate(rows)}, path)


def import_p_plus(
    path: str | os.PathLike, backbone: Backbone, attribute: str = "concept", word: str = "object",
    per_block: bool = False, trust_pickle: bool = False,
) -> Concept:  # fmt: skip
    """Read a P+ file of the public ports, or our own.

    Args:
        backbone: that the embeddings were learned with.
        attribute: the name that the vectors get here.
        word: what they departed from, for `Concept.scaled`.
        per_block: the file comes from the port that gave one token to each *block*: its tokens 0 to 6 are spread over
            the layers that saw them, as in its own pictures. Taken as they are numbered, its tokens 7 to 15 are the
            untrained initial word and most layers get another layer's vector.
        trust_pickle: the ports' `.bin` files are pickles; read with PyTorch's `weights_only` reader.

    Raises:
        UserError: no such file, a pickle without `trust_pickle`, or other contents than numbered vectors of this width.
    """
    tensors = _read(Path(path), trust_pickle)
    found: dict[str, dict[int, Tensor]] = {}
    for key, value in tensors.items():
        if match := NUMBERED.fullmatch(key):
            found.setdefault(match["token"], {})[int(match["layer"])] = value
    space = backbone.p_plus()
    count = len(space.layer_names)
    layers = next(iter(found.values()), {})
    if len(found) != 1 or sorted(layers) != list(range(count)):
        what = f"{len(tensors)} tensors ({', '.join(list(tensors)[:2])}, ...)"
        raise UserError(f"the P+ file '{path}' has {what}; expected TOKEN-0 to TOKEN-{count - 1} of one token")
    rows = [layers[i].reshape(-1, layers[i].shape[-1]).float() for i in range(count)]
    if {row.shape for row in rows} != {rows[0].shape} or rows[0].shape[-1] != backbone.width:
        sizes = sorted({tuple(row.shape) for row in rows})
        raise UserError(f"the P+ file '{path}' has vectors of {sizes}; expected width {backbone.width}")
    if per_block:
        if count != len(PER_BLOCK):
            raise UserError(f"the port's files are for 16 layers, this backbone has {count}; read it without per_block")
        rows = [rows[i] for i in PER_BLOCK]
    vectors = torch.stack(rows)[:, None]
    anchor = backbone.prompts.word_embedding(word, vectors.shape[2]).float().cpu()
    notes = {"source": Path(path).name, "method": "xti", "port": "per block" if per_block else "per layer"}
    return Concept({attribute: vectors}, {attribute: anchor}, space, backbone.name, backbone.text_hash, notes=notes)


def _read(path: Path, trust_pickle: bool) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"there is no file at '{path}': check the path")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if not trust_pickle:
            raise UserError(
                f"'{path}' is a pickle, which can run code when it is read; expected .safetensors: "
                "set trust_pickle if you trust its author"
            )
        found = torch.load(path, map_location="cpu", weights_only=True)
        return {str(key): value.detach() for key, value in found.items()}
    except UserError:
        raise
    except Exception as error:  # unpickling raises what it likes
        raise UserError(f"'{path}' cannot be read ({type(error).__name__}): give a file of embeddings") from error


def _one_attribute(concept: Concept, attribute: str, cells: int) -> Tensor:
    """(L, K, D)."""
    if concept.placement != "words":
        raise UserError("the concept's vectors act behind the text encoder; other programs' layouts hold words only")
    vectors = concept.only(attribute).vectors[attribute].detach().cpu()
    if tuple(vectors.shape[:2]) != (cells, 1):
        raise UserError(
            f"the concept fills {vectors.shape[0]} layer cells x {vectors.shape[1]} stages; expected {cells} x 1"
        )
    return vectors[:, 0]
