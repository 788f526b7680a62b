"""The models that a bench needs, and the pictures they make."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor

from escdiff.backbone import Backbone, load_backbone, mini_folder
from escdiff.backbone.branches import set_branches
from escdiff.concept import ATTRIBUTES, WHOLE, placeholder
from escdiff.control import Control
from escdiff.control.inversion import invert
from escdiff.control.plug_and_play import PlugAndPlay
from escdiff.data.colours import alpha_of, to_rgb
from escdiff.data.index import sha256
from escdiff.data.pictures import to_mask
from escdiff.encoder.checkpoint import bundled_folder
from escdiff.encoder.encoder import ConceptEncoder
from escdiff.evaluation.bench import scores
from escdiff.evaluation.bench.identity import Gallery
from escdiff.evaluation.bench.pictures import pixels_of
from escdiff.evaluation.metrics.features import Clip
from escdiff.mini.oracle import Oracle
from escdiff.mini.scene_oracle import SceneOracle
from escdiff.pipelines.generate import generate

ROUNDS = 2  # of the inversion of a picture that is edited
Advance = Callable[[int], None]


@dataclass(eq=False)
class Models:
    """Backbone, oracle, and what is there of the concept encoder, CLIP and the judge of scenes.

    Attributes:
        clip: a second opinion; None gives no CLIP scores.
        fingerprints: of backbone and oracle, of the encoder, of the scene oracle; they change when the weights do.
        scene_oracle: None leaves out the tasks that it judges.
    """

    backbone: Backbone
    oracle: Oracle
    encoder: ConceptEncoder | None = None
    clip: Clip | None = None
    fingerprints: tuple[str, str, str] = ("", "", "")
    steps: int = 20
    guidance: float = 3.0
    batch_size: int = 16
    scene_oracle: SceneOracle | None = None
    gallery: Gallery = field(init=False)

    def __post_init__(self) -> None:
        self.gallery = Gallery(self.oracle)

    @classmethod
    def load(
        cls, backbone: str, encoder: Path | None, oracle: Path | None, concepts: bool, steps: int, guidance: float,
        scene_oracle: Path | None = None,
    ) -> "Models":  # fmt: skip
        """Load from folders, or the bundled ones; the encoder only if `concepts` are asked for.

        The scene oracle is left out where none is named and none is bundled.

        Raises:
            UserError: one of them is missing or does not fit the backbone.
        """
        scenes = SceneOracle.find(scene_oracle)
        judge = Oracle.from_pretrained(oracle)
        model = load_backbone(backbone)
        reader = ConceptEncoder.from_pretrained(encoder, model) if concepts else None
        home = mini_folder() if backbone == "mini" else Path(backbone).expanduser()
        clip = Clip(home / "clip", model.tokenizer) if (home / "clip" / "preprocessor_config.json").is_file() else None
        weights = (
            fingerprint(model.name, model.text_hash, home, oracle or mini_folder() / "oracle"),
            fingerprint(encoder or bundled_folder()),
            fingerprint(scene_oracle or SceneOracle.bundled()),
        )
        return cls(model, judge, reader, clip, weights, steps, guidance, scene_oracle=scenes)

    def read(self, pictures: Sequence[Image.Image]) -> list[dict]:
        """The oracle's readings, see `scores.read`."""
        return scores.read(self.oracle, pixels_of(pictures))

    def paint(
        self,
        requests: Sequence,
        references: Sequence[dict[str, Image.Image]],
        seeds: Sequence[int],
        advance: Advance,
        controls: Sequence[Control] = (),
    ) -> list[Image.Image]:
        """One picture per request; it depends on its own request, references and seed only.

        Args:
            requests: anything with a `prompt`.
            references: name -> picture: an attribute whose placeholder the prompt holds, or any name for a whole
                concept; every request has the same names. A picture's transparency is its mask.
        """
        pictures = []
        for first in range(0, len(requests), self.batch_size):
            part = slice(first, first + self.batch_size)
            vectors = self._vectors(references[part])
            pictures += generate(
                self.backbone, [r.prompt for r in requests[part]], vectors, self.encoder.space if vectors else None,
                steps=self.steps, guidance=self.guidance, seeds=seeds[part], batch_size=self.batch_size,
                controls=controls,
            )  # fmt: skip
            advance(len(requests[part]))
        return pictures

    def edit(self, before: Image.Image, source: str, prompt: str, seed: int) -> Image.Image:
        """A picture that `source` describes, painted in the words of `prompt` by Plug-and-Play."""
        self.use_branches(False)
        with _backwards(self.backbone):
            pipeline = self.backbone.pipeline()
            pipeline.set_progress_bar_config(disable=True)
            way = invert(pipeline, before, source, self.steps, ROUNDS)
            controls = [PlugAndPlay(way)]
            options = {"steps": self.steps, "guidance": self.guidance, "seeds": [seed], "controls": controls}
            return generate(self.backbone, [prompt], **options)[0]

    def use_branches(self, on: bool) -> None:
        """Switch the encoder's branches, where it has some: on for its concepts, off for all else that is painted."""
        if self.encoder is not None and self.encoder.config.branch_rank:
            set_branches(self.backbone.unet, dict.fromkeys(ATTRIBUTES, 1.0) if on else {})

    def _vectors(self, references: Sequence[dict[str, Image.Image]]) -> dict[str, Tensor]:
        """Placeholder -> (B, L, S, K, D) of references of the same names."""
        names = list(references[0])
        self.use_branches(bool(names))
        pictures = {name: [reference[name] for reference in references] for name in names}
        vectors = self._encode({name: pictures.pop(name) for name in ATTRIBUTES if name in pictures})
        if len(vectors) > 1:
            vectors[placeholder(WHOLE)] = torch.cat(list(vectors.values()), dim=3)
        for name, shown in pictures.items():
            encoded = self._encode(dict.fromkeys(ATTRIBUTES, shown))
            vectors[placeholder(name)] = torch.cat(list(encoded.values()), dim=3)
        return vectors

    @torch.no_grad()
    def _encode(self, pictures: dict[str, list[Image.Image]]) -> dict[str, Tensor]:
        """Attribute -> its references to placeholder -> vectors."""
        if not pictures:
            return {}
        size = self.encoder.vision.image_size
        pixels = {f"{a}_pixels": pixels_of([to_rgb(p) for p in shown], size) for a, shown in pictures.items()}
        masks = {f"{a}_mask": _masks(shown, size) for a, shown in pictures.items()}
        encoded = self.encoder(**pixels, **masks)
        return {placeholder(a): v.float() for a, v in encoded.items()}

    @torch.no_grad()
    def reconstruct(self, pixels: Tensor, advance: Advance) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] through the VAE, the mean of its latents."""
        out = []
        for part in pixels.split(self.batch_size):
            mean = self.backbone.moments(part).chunk(2, 1)[0]
            out.append(self.backbone.vae.decode(mean).sample.clamp(-1, 1).float().cpu())
            advance(len(part))
        return torch.cat(out)


@contextmanager
def _backwards(backbone: Backbone) -> Iterator[None]:
    """DDIM in the scheduler's place: its steps run backwards."""
    scheduler = backbone.scheduler
    backbone.scheduler = DDIMScheduler.from_config(scheduler.config)
    try:
        yield
    finally:
        backbone.scheduler = scheduler


def _masks(pictures: Sequence[Image.Image], size: int) -> Tensor | None:
    """(B, 1, size, size) of pictures that say by transparency what counts; None if they do not."""
    alphas = [alpha_of(picture) for picture in pictures]
    return None if None in alphas else torch.stack([to_mask(alpha, size) for alpha in alphas])


def fingerprint(*sources: Path | str) -> str:
    """Hash of texts and of files' bytes: the same weights in another folder, or copied anew, are the same.

    Args:
        sources: texts; folders, which count by all files below them; files. A path to nothing counts as a text.
    """
    states: list = []
    for source in sources:
        if not isinstance(source, Path) or not source.exists():
            states.append(str(source))
            continue
        files = sorted(source.rglob("*")) if source.is_dir() else [source]
        states += [(file.relative_to(source).as_posix(), sha256(file)) for file in files if file.is_file()]
    return hashlib.sha256(repr(states).encode()).hexdigest()[:16]
