"""Recognition of files of weights by their metadata and their tensors' names and shapes; no tensor is read."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from escdiff.concept.concept import FORMAT as CONCEPT
from escdiff.encoder.checkpoint import CONFIG, WEIGHTS, read_config
from escdiff.sharing.layouts import TOWERS, layout_of
from escdiff.sharing.reading import read_shapes
from escdiff.support.errors import UserError
from escdiff.support.modelspec import BASES, PREFIX, THUMBNAIL

Shapes = Mapping[str, tuple[int, ...]]
EMBEDDINGS = {
    "ti": "textual inversion (one tensor under its token)",
    "emb_params": "textual inversion (A1111, emb_params)",
    "string_to_param": "textual inversion (A1111, string_to_param)",
    "clip": "textual inversion (one tensor per text encoder)",
    "p+": "P+ embeddings (TOKEN-0, TOKEN-1, ...)",
    "xti": "P+ embeddings (kohya's XTI)",
}
FAMILIES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "Stable Diffusion XL"}
ENCODER = "ESCDiff encoder"
DOWN, UP = ("lora_down.weight", "lora_A.weight"), ("lora_up.weight", "lora_B.weight")


@dataclass(frozen=True)
class Description:
    """Kind of a file, and facts about it."""

    kind: str
    facts: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        facts = (f"{name}: {value}" for name, value in self.facts.items())
        # What stands in a file could otherwise move a terminal's cursor.
        return "\n  ".join("".join(c if c.isprintable() else "?" for c in line) for line in (self.kind, *facts))


def inspect(path: Path, trust_pickle: bool = False) -> Description:
    """Say what a safetensors file, a pickle of embeddings, or an encoder's folder is.

    Raises:
        UserError: nothing there, a pickle without `trust_pickle`, a damaged file, or a folder that is no encoder.
    """
    if path.is_dir():
        if not (path / CONFIG).is_file() or not (path / WEIGHTS).is_file():
            raise UserError(f"'{path}' is a folder without {CONFIG} and {WEIGHTS}; give a file, or an encoder's folder")
        path, encoder = path / WEIGHTS, path
    else:
        encoder = path.parent
    shapes, metadata = read_shapes(path, trust_pickle)
    try:
        description = next(
            (d for recognise in RECOGNISERS if (d := recognise(shapes, metadata))), Description("unknown")
        )
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"'{path}' is damaged ({error!r}): its metadata and its tensors do not fit") from error
    if description.kind == ENCODER and path.name == WEIGHTS and (encoder / CONFIG).is_file():
        _, about, config, space = read_config(encoder)
        tokens = ", ".join(f"{a} {k}" for a, k in config.tokens.items())
        facts = {"made for": f"{about['base_model']}, text width {about['width']}", "vectors": tokens,
                "layer cells x stages": f"{space.num_layers} x {space.num_stages}",
                "vision tower": about["encoder"]["vision"]}  # fmt: skip
        description.facts.update(facts)
    numbers = sum(math.prod(shape) for shape in shapes.values())
    description.facts["size"] = f"{len(shapes)} tensors, {numbers:,} numbers, {path.stat().st_size / 1e6:.2f} MB"
    keys = [key for key in sorted(metadata) if key.startswith(PREFIX) and key != THUMBNAIL and metadata[key]]
    description.facts.update({key.removeprefix(PREFIX): metadata[key][:200] for key in keys})
    if THUMBNAIL in metadata:
        description.facts["thumbnail"] = f"{len(metadata[THUMBNAIL]) * 3 / 4e3:.0f} KB"
    return description


def _concept(shapes: Shapes, metadata: Mapping[str, str]) -> Description | None:
    if metadata.get("format") != CONCEPT:
        return None
    sizes = {name.removeprefix("vectors."): shape for name, shape in shapes.items() if name.startswith("vectors.")}
    order = json.loads(metadata["attributes"]) if "attributes" in metadata else list(sizes)
    about = {"placeholders": ", ".join(f"<{name}> of {shape[2]} vectors" for name in order for shape in (sizes[name],))}
    cells = {f"{shape[0]} x {shape[1]}" for shape in sizes.values()}
    about |= {"layer cells x stages": ", ".join(sorted(cells)), "made for": metadata.get("base_model", "?")}
    if branches := json.loads(metadata.get("branches", "{}")):
        about["needs the branches of"] = str(branches.get("encoder"))
    if metadata.get("license"):
        about["licence of the reference"] = metadata["license"]
    return Description("ESCDiff concept", about)


def _encoder(shapes: Shapes, metadata: Mapping[str, str]) -> Description | None:
    parts = ("filters.shape.", "filters.appearance.", "heads.shape.", "heads.appearance.")
    return Description(ENCODER) if all(any(name.startswith(part) for name in shapes) for part in parts) else None


def _embeddings(shapes: Shapes, metadata: Mapping[str, str]) -> Description | None:
    layout = layout_of(shapes)
    if layout is None:
        return None
    first = next(iter(shapes.values()))
    width = sum(shapes[key][-1] for key in TOWERS if key in shapes) if layout == "clip" else first[-1]
    facts = {"vectors": f"{len(shapes) if layout in ('p+', 'xti') else 1} cells of "
                        f"{first[0] if len(first) == 2 else 1}, width {width}"}  # fmt: skip
    if layout == "ti":
        facts["token"] = next(iter(shapes))
    return Description(EMBEDDINGS[layout], facts | _family(width))


def _lora(shapes: Shapes, metadata: Mapping[str, str]) -> Description | None:
    downs = {name: shape for name, shape in shapes.items() if name.endswith(DOWN)}
    if not downs or not any(name.endswith(UP) for name in shapes):
        return None
    ranks = sorted({shape[0] for shape in downs.values()})
    widths = [shape[1] for name, shape in downs.items() if "attn2" in name and "to_k" in name]
    return Description("LoRA", {"layers": str(len(downs)), "rank": ", ".join(map(str, ranks))} | _family(*widths[:1]))


def _weights(shapes: Shapes, metadata: Mapping[str, str]) -> Description | None:
    """Recognise networks by their first layers' names, in diffusers' and the first Stable Diffusion's layout."""
    unet = "model.diffusion_model.input_blocks.0.0.weight" in shapes
    vae = any(name.endswith("decoder.conv_in.weight") for name in shapes)
    text = any(name.endswith("embeddings.token_embedding.weight") for name in shapes)
    widths = [shape[1] for name, shape in shapes.items() if name.endswith("attn2.to_k.weight")]
    if unet and (vae or text):
        return Description("checkpoint (U-Net, VAE and text encoder in one file)", _family(*widths[:1]))
    if unet or {"conv_in.weight", "time_embedding.linear_1.weight"} <= set(shapes):
        layout = "the first Stable Diffusion's layout" if unet else "diffusers' layout"
        return Description(f"U-Net ({layout})", _family(*widths[:1]))
    if any(name.startswith("image_proj.") for name in shapes) and any(n.startswith("ip_adapter.") for n in shapes):
        return Description("IP-Adapter")
    if vae:
        return Description("VAE")
    return Description("text encoder (CLIP)") if text else None


def _family(*width: int) -> dict[str, str]:
    """For which base model, by the width of its text encoders."""
    return {"for": FAMILIES[width[0]]} if width and width[0] in BASES else {}


RECOGNISERS = (_concept, _encoder, _lora, _embeddings, _weights)
