"""The models that a bench needs, and the pictures they make."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from escdiff.backbone import Backbone, load_backbone, mini_folder
from escdiff.concept import ATTRIBUTES, WHOLE, placeholder
from escdiff.data.images import to_pixels
from escdiff.encoder.branches import set_branches
from escdiff.encoder.checkpoint import bundled_folder
from escdiff.encoder.encoder import ConceptEncoder
from escdiff.evaluation import scores
from escdiff.evaluation.metrics.features import Clip
from escdiff.evaluation.references import Request
from escdiff.pipeline import generate
from escdiff.still_life.oracle import Oracle
from escdiff.still_life.render import render
from escdiff.still_life.world import Factors

SIZE = 128  # pixels, of the renders and of what the oracle reads
Advance = Callable[[int], None]


@dataclass(eq=False)
class Models:
    """Backbone, oracle, and what is there of the concept encoder and CLIP.

    Attributes:
        clip: a second opinion; None gives no CLIP scores.
        fingerprints: of backbone and oracle, and of the encoder; they change when the weights do.
    """

    backbone: Backbone
    oracle: Oracle
    encoder: ConceptEncoder | None = None
    clip: Clip | None = None
    fingerprints: tuple[str, str] = ("", "")
    steps: int = 20
    guidance: float = 3.0
    batch_size: int = 16

    @classmethod
    def load(
        cls, backbone: str, encoder: Path | None, oracle: Path | None, concepts: bool, steps: int, guidance: float
    ) -> "Models":
        """Load from folders, or the bundled ones; the encoder only if `concepts` are asked for.

        Raises:
            UserError: one of them is missing or does not fit the backbone.
        """
        judge = Oracle.from_pretrained(oracle)
        model = load_backbone(backbone)
        reader = ConceptEncoder.from_pretrained(encoder, model) if concepts else None
        home = mini_folder() if backbone == "mini" else Path(backbone).expanduser()
        clip = Clip(home / "clip", model.tokenizer) if (home / "clip" / "preprocessor_config.json").is_file() else None
        weights = (
            fingerprint(model.name, model.text_hash, home, oracle or mini_folder() / "oracle"),
            fingerprint(encoder or bundled_folder()),
        )
        return cls(model, judge, reader, clip, weights, steps, guidance)

    def read(self, pictures: Sequence[Image.Image]) -> list[dict]:
        """What the oracle reads, see `scores.read`."""
        return scores.read(self.oracle, pixels_of(pictures))

    def paint(
        self,
        requests: Sequence[Request],
        references: Sequence[dict[str, Image.Image]],
        seeds: Sequence[int],
        advance: Advance,
    ) -> list[Image.Image]:
        """One picture per request; it depends on its own request, references and seed only.

        Args:
            references: attribute -> picture, for the attributes that the request reads from one.
        """
        pictures = []
        for first in range(0, len(requests), self.batch_size):
            part = slice(first, first + self.batch_size)
            vectors = self._vectors(references[part])
            pictures += generate(
                self.backbone, [r.prompt for r in requests[part]], vectors, self.encoder.space if vectors else None,
                steps=self.steps, guidance=self.guidance, seeds=seeds[part], batch_size=self.batch_size,
            )  # fmt: skip
            advance(len(requests[part]))
        return pictures

    def _vectors(self, references: Sequence[dict[str, Image.Image]]) -> dict[str, Tensor]:
        """Placeholder -> (B, L, S, K, D) of references for the same attributes."""
        attributes = list(references[0])
        if self.encoder is not None and self.encoder.config.branch_rank:
            set_branches(self.backbone.unet, dict.fromkeys(ATTRIBUTES, 1.0) if attributes else {})
        if not attributes:
            return {}
        size = self.encoder.vision.image_size
        with torch.no_grad():
            found = self.encoder(**{f"{a}_pixels": pixels_of([r[a] for r in references], size) for a in attributes})
        vectors = {placeholder(a): self.encoder.place(a, v).float() for a, v in found.items()}
        if len(vectors) > 1:
            vectors[placeholder(WHOLE)] = torch.cat(list(vectors.values()), dim=3)
        return vectors

    @torch.no_grad()
    def reconstruct(self, pixels: Tensor, advance: Advance) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] through the VAE, the mean of its latents."""
        out = []
        for part in pixels.split(self.batch_size):
            mean = self.backbone.moments(part).chunk(2, 1)[0]
            out.append(self.backbone.vae.decode(mean).sample.clamp(-1, 1).float().cpu())
            advance(len(part))
        return torch.cat(out)


def draw(factors: Sequence[Factors]) -> list[Image.Image]:
    """Render; what is asked for twice is rendered once."""
    unique = list(dict.fromkeys(factors))
    pictures = dict(zip(unique, map(Image.fromarray, render(unique, SIZE).image), strict=True))
    return [pictures[f] for f in factors]


def pixels_of(pictures: Sequence[Image.Image], size: int = SIZE) -> Tensor:
    """Pictures of any size as (B, 3, size, size) in [-1, 1]."""
    return torch.stack([to_pixels(picture, size) for picture in pictures])


def fingerprint(*sources: Path | str) -> str:
    """Hash of names, and of the files' sizes and times below folders: cheap, and changed by any new training."""
    states: list = []
    for source in sources:
        files = sorted(source.rglob("*")) if isinstance(source, Path) and source.is_dir() else [Path(source)]
        states.append(str(source))
        states += [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]
    return hashlib.sha256(repr(states).encode()).hexdigest()[:16]
