"""Which family a model or a stock pipeline belongs to, by the name of its class."""

from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import unwrap_module
from torch import nn

from escdiff.backbone.family.base import Family
from escdiff.backbone.family.cross_attention import PixArt, Sana
from escdiff.backbone.family.joint_attention import SD3, Flux, QwenImage
from escdiff.backbone.family.unet import UNet
from escdiff.support.errors import UserError

FAMILIES: dict[str, Family] = {family.name: family for family in (UNet(), PixArt(), Sana(), SD3(), Flux(), QwenImage())}


def register(family: Family) -> Family:
    """Add a family; returns it.

    Raises:
        UserError: its name, or one of its models, is taken.
    """
    for other in FAMILIES.values():
        shared = {other.name} & {family.name} | set(other.models) & set(family.models)
        if shared:
            raise UserError(f"the family {family.name!r} shares {sorted(shared)[0]!r} with {other.name!r}; rename it")
    FAMILIES[family.name] = family
    return family


def family_of(model: nn.Module | DiffusionPipeline | str) -> Family:
    """The family of a model, of a pipeline, or of a class's name.

    Raises:
        UserError: none, naming those that there are.
    """
    if isinstance(model, DiffusionPipeline):
        model = denoiser_of(model)
    name = model if isinstance(model, str) else type(unwrap_module(model)).__name__
    for family in FAMILIES.values():
        if name in family.models or name in family.pipelines:
            return family
    known = ", ".join(one for family in FAMILIES.values() for one in family.models)
    raise UserError(f"a {name} was given; expected one of {known}, or add a family (docs/families.md)")


def denoiser_of(pipeline: DiffusionPipeline) -> nn.Module:
    """A pipeline's transformer or U-Net.

    Raises:
        UserError: it has neither.
    """
    for part in ("transformer", "unet"):
        if isinstance(model := getattr(pipeline, part, None), nn.Module):
            return model
    raise UserError(f"a {type(pipeline).__name__} was given; expected a pipeline with a transformer or a U-Net")
