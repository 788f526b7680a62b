"""The work of the tab *Edit* without its widgets: a visitor's picture is changed by words or by a reference."""

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from escdiff.backbone import Backbone
from escdiff.concept import Concept
from escdiff.control.inversion import invert
from escdiff.control.keep import paste
from escdiff.data.pictures import decode_picture, read_file
from escdiff.pipelines.edit import edit_controls, with_ddim
from escdiff.pipelines.generate import generate
from escdiff.serving.engine import Engine
from escdiff.serving.limits import Limits
from escdiff.support.errors import UserError

# What the tab calls them -> (method, attribute that a reference gives).
CHOICES = {
    "words, in its layout (Plug-and-Play)": ("plug_and_play", None),
    "words, with its attention (pix2pix-zero)": ("pix2pix_zero", None),
    "the appearance of a reference": ("transfer", "appearance"),
    "the shape of a reference": ("transfer", "shape"),
}
MOST_STEPS, ROUNDS = 50, 4
LIMITS = Limits()


class Editor:
    """Edits one picture after the other, with a copy of the engine's U-Net, since the painter's may be in use."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self._lock = engine, threading.Lock()

    @cached_property
    def backbone(self) -> Backbone:
        """With DDIM, and a U-Net of its own."""
        return replace(with_ddim(self.engine.backbone), unet=copy.deepcopy(self.engine.backbone.unet))

    def edit(
        self, picture: str | None, layers: Sequence[str], choice: str, source: str, prompt: str,
        reference: str | None = None, steps: int = 25, guidance: float = 3.0,
        on_step: Callable[[int], None] | None = None,
    ) -> tuple[Image.Image, Image.Image]:  # fmt: skip
        """(the picture as it was read, the edited one).

        Args:
            picture: an uploaded file. layers: files of what the visitor's brush drew over it, see `brushed`.
            choice: of `CHOICES`.
            source: what the picture shows, in words. prompt: what it should show.
            on_step: called after every step of the painting.

        Raises:
            UserError: something is missing, too large or of the wrong kind.
        """
        if not picture:
            raise UserError("no picture was given; upload one")
        if choice not in CHOICES:
            raise UserError(f"the edit {choice!r} was given; expected one of {', '.join(CHOICES)}")
        most = self.engine.limits.prompt
        for name, text in {"what it shows": source, "what it should show": prompt}.items():
            if not (text or "").strip() or len(text) > most:
                raise UserError(f"{name} has {len(text or '')} letters; expected 1 to {most}")
        if not 1 <= steps <= MOST_STEPS or not 0 <= guidance <= 30:
            raise UserError(f"{steps} steps and guidance {guidance} given; expected 1 to {MOST_STEPS} and 0 to 30")
        (method, attribute), side = CHOICES[choice], self.engine.backbone.picture_size
        mask, before = brushed(layers, side), ImageOps.fit(self._read(picture), (side, side))
        concept = self._concept(attribute, reference, prompt, mask)
        with self._lock, torch.no_grad():
            pipeline = self.backbone.pipeline()
            pipeline.set_progress_bar_config(disable=True)
            way = invert(pipeline, before, source, int(steps), ROUNDS)
            controls, edit_prompt = edit_controls(self.backbone, method, way, prompt, concept, mask)
            (after,) = generate(
                self.backbone, [edit_prompt], concept, steps=int(steps), guidance=float(guidance), controls=controls,
                on_step=on_step,
            )  # fmt: skip
        return before, after if mask is None else paste(after, before, mask)

    def _read(self, path: str) -> Image.Image:
        return self.engine.read_picture(read_file(Path(path), self.engine.limits.picture_bytes))

    def _concept(
        self, attribute: str | None, reference: str | None, prompt: str, mask: Tensor | None
    ) -> Concept | None:
        """The reference's attribute, where the edit takes one."""
        if attribute is None:
            return None
        if not reference:
            raise UserError(f"no reference was given; upload a picture for the {attribute}")
        if f"<{attribute}>" not in prompt:
            raise UserError(f"the prompt has no place for the reference; write <{attribute}> where it belongs")
        if attribute == "shape" and mask is None:
            raise UserError("a new shape has another outline; brush over the place that it may take")
        return self.engine.encode({attribute: self._read(reference)})


def brushed(layers: Sequence[str], side: int) -> Tensor | None:
    """(1, side, side): 1 where any of the layers is not transparent, of their centre squares; None if nothing is."""
    mask = torch.zeros(1, side, side)
    for layer in layers:
        drawing = decode_picture(read_file(Path(layer), LIMITS.picture_bytes), "upload", LIMITS.picture_pixels)
        if drawing.alpha is not None:
            alpha = ImageOps.fit(drawing.alpha, (side, side))
            mask = torch.maximum(mask, torch.from_numpy(np.asarray(alpha) > 127)[None].float())
    return mask if mask.any() else None
