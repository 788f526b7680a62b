"""Models of the edit bench, and results of a case that several editors share."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from diffusers import StableDiffusionInstructPix2PixPipeline
from PIL import Image
from torch import Tensor

from escdiff.concept import Concept
from escdiff.control.inversion import Trajectory, invert
from escdiff.evaluation.bench.models import Models
from escdiff.evaluation.editing.cases import Case
from escdiff.pipelines.edit import edit_controls, with_ddim
from escdiff.pipelines.generate import generate
from escdiff.pipelines.instruct import load_instruct
from escdiff.pipelines.placer import Placer


@dataclass(eq=False)
class Tools:
    """See above.

    Attributes:
        trained: editor -> folder of the model that was trained for it.
        saved: seconds of inversions that were at hand, those of all calls of `source` together.
        passes: case -> calls of the U-Net for its picture, until they are judged.
    """

    models: Models
    trained: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.backbone, self._sources, self.saved = with_ddim(self.models.backbone), {}, 0.0
        self.passes: dict[int, int] = {}
        self.pipeline = self.backbone.pipeline()
        self.pipeline.set_progress_bar_config(disable=True)

    @cached_property
    def instruct(self) -> StableDiffusionInstructPix2PixPipeline:
        """Of `trained["instruct_pix2pix"]`."""
        return load_instruct(self.trained["instruct_pix2pix"], self.backbone.device, self.backbone.dtype)

    @cached_property
    def placer(self) -> Placer:
        """Of `trained["anydoor"]`."""
        return Placer.from_pretrained(self.trained["anydoor"], self.backbone.unet)

    def source(self, case: Case) -> Trajectory:
        """The inversion of the picture before."""
        if case.number in self._sources:
            source, seconds = self._sources[case.number]
            self.saved += seconds
            return source
        start = time.perf_counter()
        self.models.use_branches(False)
        source = invert(self.pipeline, case.before, case.words[0], self.models.steps)
        self._sources[case.number] = source, time.perf_counter() - start
        return source

    def edit(
        self, case: Case, name: str, prompt: str, mask: Tensor | None = None, concept: Concept | None = None
    ) -> Image.Image:
        """One picture by the backbone, see `escdiff.pipelines.edit`."""
        models = self.models
        controls, prompt = edit_controls(self.backbone, name, self.source(case), prompt, concept, mask)
        models.use_branches(concept is not None)
        return generate(
            self.backbone, [prompt], concept, steps=models.steps, guidance=models.guidance, seeds=[case.number],
            controls=controls,
        )[0]  # fmt: skip
