"""What loaded concepts put into a pipeline's U-Net and ControlNets: bindings, weights, the picture's hooks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.utils.torch_utils import unwrap_module
from torch import Tensor, nn

from escdiff.backbone.adapters.attached import Attached, distinct, image_scale
from escdiff.backbone.branches import is_routed
from escdiff.concept import IMAGE_TOKENS, Concept
from escdiff.conditioning import ConditioningSpace, bind
from escdiff.conditioning.binding import is_compiled
from escdiff.conditioning.fuse import Fusions
from escdiff.methods.picture import PictureFeed
from escdiff.support.errors import UserError


@dataclass(eq=False)
class Entry:
    """One loaded concept, or the vectors of one call.

    Attributes:
        vectors: placeholder -> (B or 1, L, S, K, D).
        parts: see `escdiff.concept.attribute_parts`.
        fusions: what is fused at the placeholders.
        concept: None for vectors without one, which are taken as they are.
        any_text: accept another text encoder than the concept's.
        weights: folder of the adapter that it brings along.
    """

    vectors: dict[str, Tensor]
    space: ConditioningSpace
    parts: dict[str, list[tuple[str, int]]]
    fusions: Fusions = field(default_factory=dict)
    concept: Concept | None = None
    any_text: bool = False
    weights: Path | None = None

    @property
    def image(self) -> Tensor | None:
        """Image tokens, (N, W) or (W,)."""
        return None if self.concept is None else self.concept.extras.get(IMAGE_TOKENS)


class Attachments:
    """Keeps a pipeline's U-Net and ControlNets as the loaded concepts need them.

    Attributes:
        space: with room for all that is loaded.
        packs: whether prompts must be packed for it: it has several cells, or the header tells the U-Net something.
    """

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        self.pipeline = pipeline
        self.space: ConditioningSpace | None = None
        self.packs = False
        self._handles: list = []
        self._weights: list[Attached] = []
        self._state: tuple = ()

    def update(self, entries: Sequence[Entry], tokens: int) -> None:
        """Attach what these entries need and take the rest out, also from a U-Net that was replaced meanwhile.

        Args:
            tokens: T of the text encoders.

        Raises:
            UserError: entries that do not go together or with the U-Net; then nothing is attached.
        """
        unet, controls = unwrap_module(self.pipeline.unet), _controlnets(self.pipeline)
        entries = tuple(entries)
        state = (unet, *controls, is_routed(unet), tokens, *entries)
        if state == self._state and all(weights.stands() for weights in self._weights):
            return
        self.clear()
        finest = ConditioningSpace.p_plus(unet)
        joined = reduce(ConditioningSpace.join, (e.space for e in entries), ConditioningSpace((finest.layer_names,)))
        images = [entry.image for entry in entries if entry.image is not None and entry.weights is not None]
        if len(images) > 1:
            raise UserError("two concepts with pictures of their own were given; expected one at a time, unload one")
        routed = bool(entries) and is_routed(unet)
        try:
            brought = {entry.weights: entry for entry in entries if entry.weights is not None}
            for folder in distinct(list(brought)):
                self._weights.append(Attached(unet, folder, image_scale(brought[folder].concept)))
            if packs := joined.num_layers * joined.num_stages > 1 or routed or bool(images):
                self._handles.append(bind(self.pipeline.unet, joined, tokens))
                self._handles += [bind(net, joined, tokens, whole=False) for net in controls]
            elif self._weights and is_compiled(self.pipeline.unet):
                torch.compiler.reset()
            self._handles += [PictureFeed(unet, image, tokens) for image in images]
        except BaseException:
            self.clear()
            raise
        self.space, self.packs, self._state = joined, packs, state

    def clear(self) -> None:
        """Take everything out."""
        compiled = bool(self._weights) and is_compiled(self.pipeline.unet)
        for attached in (self._handles, self._weights):
            while attached:
                attached.pop().remove()
        if compiled:
            torch.compiler.reset()
        self.space, self.packs, self._state = None, False, ()


def _controlnets(pipeline: DiffusionPipeline) -> list[nn.Module]:
    control = getattr(pipeline, "controlnet", None)
    return list(getattr(control, "nets", [control] if control is not None else []))
