"""Which controls make an edit of a real picture: Plug-and-Play, pix2pix-zero, or an attribute of a reference."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffusers import DDIMScheduler
from torch import Tensor

from escdiff.backbone import Backbone
from escdiff.concept import ATTRIBUTES, Concept
from escdiff.control import Control
from escdiff.control.inversion import Trajectory
from escdiff.control.keep import Keep
from escdiff.control.pix2pix_zero import Pix2PixZero, direction_between
from escdiff.control.plug_and_play import PlugAndPlay
from escdiff.control.transfer import transfer
from escdiff.pipelines.load_concept import loaded
from escdiff.support.errors import UserError

METHODS = ("plug_and_play", "pix2pix_zero", "transfer")


def with_ddim(backbone: Backbone) -> Backbone:
    """The same models with a DDIM scheduler, whose steps run backwards."""
    return backbone.with_part("scheduler", DDIMScheduler.from_config(backbone.scheduler.config))


def edit_controls(
    backbone: Backbone, name: str, source: Trajectory, prompt: str, concept: Concept | None = None,
    mask: Tensor | None = None, options: Mapping[str, Any] | None = None,
) -> tuple[Sequence[Control], str]:  # fmt: skip
    """The controls, and the prompt to paint with, of an edit from a source to a prompt.

    Args:
        name: one of `METHODS`.
        concept: of the placeholders in the prompt; a transfer takes its one attribute.
        mask: (1, H, W), 1 where the picture may change; everywhere without.
        options: of the control.

    Raises:
        UserError: another name, a transfer without a concept of one attribute, what the control refuses.
    """
    options = dict(options or {})
    if name not in METHODS:
        raise UserError(f"the edit {name!r} was given; expected one of {', '.join(METHODS)}")
    if name == "transfer":
        given = [attribute for attribute in ATTRIBUTES if concept is not None and attribute in concept.attributes]
        if len(given) != 1:
            raise UserError(f"a transfer was given {len(given)} attributes; expected the shape or the appearance")
        return transfer(source, given[0], mask, **options), prompt
    keep = [Keep(source, mask)] if mask is not None else []
    if name == "plug_and_play":
        return [PlugAndPlay(source, **options), *keep], prompt
    vectors, fusions = ({}, {}) if concept is None else (concept.placeholders(), concept.fusions())
    pipeline = backbone.pipeline()
    with loaded(pipeline, vectors, concept.space if concept is not None else backbone.p_plus(), fusions):
        direction = direction_between(pipeline, [source.prompt], [prompt])
    return [Pix2PixZero(source, direction, **options), *keep], source.prompt
