"""What kind of model a name stands for, known before any weights are read.

A diffusers folder and a hub repository say it in their configurations, a single `.safetensors` file in its header.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from safetensors import safe_open
from torch import nn

from escdiff.backbone.family import FAMILIES, Family, family_of
from escdiff.conditioning import ConditioningSpace
from escdiff.support.errors import UserError, reason_of

PICKLE_SUFFIXES = {".ckpt", ".pt", ".pth", ".bin"}
ARCHITECTURES = Path(__file__).parents[1] / "assets" / "architectures"  # configurations without weights
BY_WIDTH = {768: "sd15", 1024: "sd21", 2048: "sdxl"}  # of a single file's cross-attention
UNET = "UNet2DConditionModel"  # where a configuration names no class
EXPECTED = (
    "give a text-to-image Stable Diffusion 1.x, 2.x or XL checkpoint, or a folder of PixArt, Sana, SD 3, FLUX.1 or "
    "Qwen-Image"
)
KEY_OF_CONTEXT = "attn2.to_k.weight"


def mini_folder() -> Path:
    """Where the bundled model lives (it may not have been trained yet)."""
    return Path(__file__).parents[1] / "assets" / "mini"


@dataclass(frozen=True, eq=False)
class Blueprint:
    """A backbone without its weights; it stands for one where only the fit is asked.

    Attributes:
        name: as it was given.
        source: folder, file or hub id.
        config: of a single file, the diffusers folder or hub id with its configuration.
        denoiser: configuration of the U-Net or transformer.
    """

    name: str
    source: str
    config: str | None
    denoiser: Mapping[str, Any]

    text_hash = None  # takes weights

    @property
    def is_xl(self) -> bool:
        """Whether the U-Net takes SDXL's sizes and pooled text beside the prompt."""
        return self.denoiser.get("addition_embed_type") == "text_time"

    @property
    def width(self) -> int:
        """Width of a concept's vectors: of the text as a layer reads it."""
        return self.family.layer_width(self._empty)

    @property
    def family(self) -> Family:
        """What its layers are."""
        return family_of(self.denoiser.get("_class_name", UNET))

    @property
    def _empty(self) -> nn.Module:
        return _without_weights(self.denoiser.get("_class_name", UNET), json.dumps(dict(self.denoiser)))

    def p_plus(self) -> ConditioningSpace:
        """The finest space: a cell for every layer, one stage."""
        return self.family.space(self._empty)


@cache  # a tenth of a second and more, asked several times of one model
def _without_weights(kind: str, config: str) -> nn.Module:
    with torch.device("meta"):
        return getattr(diffusers, kind).from_config(json.loads(config))


def read_blueprint(
    name: str | Path = "mini", trust_pickle: bool = False, config: str | Path | None = None, **hub: Any
) -> Blueprint:
    """Find a backbone and read what it is.

    Args:
        name: see `escdiff.backbone.load_backbone`.
        config: of a single file, a diffusers folder or hub id with its configuration; without, SD 1.5, 2.1 or XL.
        hub: `revision`, `cache_dir`, `token`, `local_files_only`.

    Raises:
        UserError: nothing of this name, a pickle without `trust_pickle`, or another kind of model.
    """
    source = _resolve(str(name), trust_pickle)
    is_file = Path(source).is_file()
    try:
        where = str(config or (ARCHITECTURES / _architecture(source))) if is_file else source
        kind = str(DiffusionPipeline.load_config(where, **hub).get("_class_name"))
        family = next((f for f in FAMILIES.values() if f.reading and kind in f.pipelines), None)
        part = UNet2DConditionModel if family is None else getattr(diffusers, family.models[0])
        denoiser = part.load_config(where, subfolder="unet" if family is None else "transformer", **hub)
    except Exception as error:  # three libraries raise what they like
        raise cannot_load(str(name), error) from error
    if family is None and not (kind.startswith("StableDiffusion") and denoiser.get("_class_name", UNET) == UNET):
        raise UserError(f"the backbone {str(name)!r} is a {kind}; {EXPECTED}")
    return Blueprint(str(name), source, where if is_file else None, denoiser)


def hub_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a loader's options that say where and how files are found."""
    return {key: options[key] for key in ("revision", "cache_dir", "token", "local_files_only") if key in options}


def cannot_load(name: str, error: Exception) -> UserError:
    """One sentence for what a loader raised."""
    if isinstance(error, UserError):
        return error
    return UserError(
        f"the backbone {name!r} could not be loaded ({type(error).__name__}: {reason_of(error)}); expected "
        "'mini', a diffusers folder of a Stable Diffusion 1.x, 2.x or XL with safetensors weights, one "
        ".safetensors file of it, or its hub id: check the name and the connection"
    )


def _architecture(file: str) -> str:
    """Which of `ARCHITECTURES` a single file's header tells of."""
    if Path(file).suffix in PICKLE_SUFFIXES:
        raise UserError(f"the pickle {file!r} does not say what it is; name a diffusers folder like it as config=")
    with safe_open(file, framework="pt") as opened:
        keys = [key for key in opened.keys() if key.endswith(KEY_OF_CONTEXT)]  # noqa: SIM118 - no mapping
        width = opened.get_slice(keys[0]).get_shape()[1] if keys else None
    if width not in BY_WIDTH:
        what = f"cross-attention of width {width}" if width else "no cross-attention"
        raise UserError(
            f"the file {file!r} has {what}; expected a whole Stable Diffusion of width "
            f"{', '.join(map(str, BY_WIDTH))}, or name a diffusers folder like it as config="
        )
    return BY_WIDTH[width]


def _resolve(name: str, trust_pickle: bool) -> str:
    """The folder, file or hub id that a backbone's name means."""
    if name == "mini":
        if not (mini_folder() / "model_index.json").is_file():
            raise UserError(
                f"the bundled model 'mini' is not at {mini_folder()}: train it with "
                "`python train.py experiment=mini/clip`, then mini/vae and mini/unet, or name another one"
            )
        return str(mini_folder())
    path = Path(name).expanduser()
    if path.suffix in PICKLE_SUFFIXES and not trust_pickle:
        raise UserError(
            f"the backbone {name!r} is a pickle, which can run code when it is read; expected .safetensors: "
            "convert it, or set trust_pickle=true if you trust its author"
        )
    looks_like_path = name.startswith((".", "/", "~")) or path.suffix in {".safetensors", *PICKLE_SUFFIXES}
    if looks_like_path and not path.exists():
        raise UserError(f"there is no backbone at {name!r}: give an existing folder or .safetensors file")
    return str(path) if path.exists() else name
