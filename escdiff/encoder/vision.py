"""Frozen CLIP vision towers behind one interface: pixels in, patch tokens by depth out."""

import hashlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, CLIPModel, CLIPVisionModel

from escdiff.backbone import mini_folder
from escdiff.data.pretrained import BUNDLED, read, read_model
from escdiff.support.errors import UserError, reason_of
from escdiff.support.names import portable

OPEN_CLIP = "open_clip:"
LOCAL = "local:"  # a tower by the name of its folder, wherever that lies
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def normalise(
    pixels: Tensor, mean: Tensor | Sequence[float] = CLIP_MEAN, std: Tensor | Sequence[float] = CLIP_STD
) -> Tensor:
    """Pixels (B, 3, H, W) in [-1, 1] -> the statistics a tower was trained with."""
    mean, std = (torch.as_tensor(v, device=pixels.device).view(3, 1, 1) for v in (mean, std))
    return (pixels * 0.5 + 0.5 - mean) / std


class VisionBackbone(nn.Module):
    """A frozen tower.

    Attributes:
        spec: the string it was loaded by.
        width: W of its tokens. num_depths: how many depths `forward` returns.
        image_size: pixels per side; num_patches: N, a square number.
        embedding_width: P of what the tower's CLIP compares with texts; 0 for a tower without its text half.
    """

    spec: str
    width: int
    num_depths: int
    image_size: int
    num_patches: int
    embedding_width: int = 0

    def __init__(self, mean: tuple[float, ...] = CLIP_MEAN, std: tuple[float, ...] = CLIP_STD) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights. Pictures are prepared in float32 whatever it is."""
        return next(self.parameters()).dtype

    def cast(self, dtype: torch.dtype) -> "VisionBackbone":
        """Store the weights in another type, and compute in it; returns itself."""
        for parameter in self.parameters():
            parameter.data = parameter.data.to(dtype)
        return self

    def prepare(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1] of any size -> the tower's own size and statistics."""
        if pixels.shape[-2:] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
        return normalise(pixels, self.mean, self.std)

    def forward(self, pixels: Tensor, embed: bool = False) -> list[Tensor]:
        """Pixels (B, 3, H, W) in [-1, 1] -> patch tokens (B, N, W) without the class token, one per depth, of `dtype`.

        With `embed`, one more: the picture's embedding (B, 1, P) of norm 1.
        """
        raise NotImplementedError

    def fingerprint(self) -> str:
        """Of what its weights do not say: the layers' kinds, and how pictures are prepared."""
        text = f"{self!r} {self.mean.tolist()} {self.std.tolist()} {self.image_size}"
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    def scale(self) -> float:
        """Mean size of its weights, which tells towers of one kind apart, whatever type they are stored in."""
        tower = [p for name, p in self.named_parameters() if not name.startswith("projection")]  # of the text half
        sums = [(p.detach().double().abs().sum().item(), p.numel()) for p in tower]
        return sum(total for total, _ in sums) / sum(count for _, count in sums)

    def freeze(self) -> "VisionBackbone":
        return self.requires_grad_(False).eval()


class TransformersVision(VisionBackbone):
    """CLIPVisionModel, or the vision half of a CLIPModel, from a folder or hub id."""

    def __init__(self, model: nn.Module, spec: str, projection: nn.Linear | None = None) -> None:
        super().__init__()
        config = model.config
        self.model, self.spec, self.width, self.image_size = model, spec, config.hidden_size, config.image_size
        self.num_depths, self.num_patches = config.num_hidden_layers, (config.image_size // config.patch_size) ** 2
        self.projection, self.embedding_width = projection, 0 if projection is None else projection.out_features

    def forward(self, pixels: Tensor, embed: bool = False) -> list[Tensor]:
        out = self.model(pixel_values=self.prepare(pixels).to(self.dtype), output_hidden_states=True)
        tokens = [state[:, 1:] for state in out.hidden_states[1:]]
        return [*tokens, F.normalize(self.projection(out.pooler_output), dim=-1)[:, None]] if embed else tokens


class OpenClipVision(VisionBackbone):
    """The vision tower of an open_clip model."""

    def __init__(self, visual: nn.Module, spec: str) -> None:
        super().__init__(
            getattr(visual, "image_mean", None) or CLIP_MEAN, getattr(visual, "image_std", None) or CLIP_STD
        )
        if not hasattr(visual, "forward_intermediates"):
            what = f"{spec} has a {type(visual).__name__}, which gives no intermediate tokens"
            raise UserError(f"{what}; choose a ViT, such as {OPEN_CLIP}ViT-L-14/openai")
        self.visual, self.spec = visual, spec
        size = visual.image_size
        self.image_size = int(size[0] if isinstance(size, tuple | list) else size)
        with torch.no_grad():
            *tokens, embedding = self.forward(torch.zeros(1, 3, self.image_size, self.image_size), embed=True)
        self.num_depths, (_, self.num_patches, self.width) = len(tokens), tokens[0].shape
        self.embedding_width = embedding.shape[-1]

    def forward(self, pixels: Tensor, embed: bool = False) -> list[Tensor]:
        out = self.visual.forward_intermediates(
            self.prepare(pixels).to(self.dtype), intermediates_only=not embed, normalize_intermediates=False,
            output_fmt="NLC",
        )  # fmt: skip
        tokens = list(out["image_intermediates"])
        return [*tokens, F.normalize(out["image_features"], dim=-1)[:, None]] if embed else tokens


def tower_name(spec: str) -> str:
    """What a tower is called away from this machine: a folder by its name alone, anything else as it is."""
    if spec == BUNDLED or spec.startswith((OPEN_CLIP, LOCAL)) or portable(spec) == spec:
        return spec
    return LOCAL + portable(spec)


def load_vision(spec: str = BUNDLED) -> VisionBackbone:
    """Load a frozen tower.

    Args:
        spec: "mini" (bundled), "open_clip:ARCHITECTURE/WEIGHTS", or a transformers folder or hub id.

    Raises:
        UserError: nothing loadable under that name.
    """
    if spec.startswith(OPEN_CLIP):
        return OpenClipVision(_open_clip_model(spec)[0].visual, spec).freeze()
    model = _transformers_model(spec)
    if isinstance(model, CLIPModel):
        return TransformersVision(model.vision_model, spec, model.visual_projection).freeze()
    return TransformersVision(model, spec).freeze()


@torch.no_grad()
def embed_texts(spec: str, texts: Sequence[str]) -> tuple[Tensor, float]:
    """What a tower's CLIP compares its embeddings with: (texts, P) of norm 1, and its logit scale.

    Raises:
        UserError: see `load_vision`; or a tower without its text half.
    """
    if spec.startswith(OPEN_CLIP):
        import open_clip

        model, architecture = _open_clip_model(spec)
        tokens = open_clip.get_tokenizer(architecture)(list(texts))
        return model.encode_text(tokens, normalize=True), float(model.logit_scale.exp())
    model = _transformers_model(spec)
    if not isinstance(model, CLIPModel):
        raise UserError(f"{spec!r} is a vision tower without its text half, which reads words; name a whole CLIP model")
    tokenizer = AutoTokenizer.from_pretrained(mini_folder() / "tokenizer" if spec == BUNDLED else spec)
    found = model.get_text_features(**tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt"))
    return F.normalize(found.pooler_output, dim=-1), float(model.logit_scale.exp())


def _open_clip_model(spec: str) -> tuple[nn.Module, str]:
    """The model and the name of its architecture.

    Its activation is that of the weights: OpenAI's and some others were trained with QuickGELU, which the plain
    architecture's configuration does not have.
    """
    import open_clip  # with timm and pandas behind it: 0.1 GB and 2 s that no other tower needs

    architecture, _, weights = spec.removeprefix(OPEN_CLIP).partition("/")
    quick = bool((open_clip.get_pretrained_cfg(architecture, weights) or {}).get("quick_gelu"))
    try:
        model = open_clip.create_model(architecture, pretrained=weights or None, force_quick_gelu=quick)
        return model.eval(), architecture
    except (RuntimeError, OSError, ValueError) as error:
        problem = f"no open_clip model from {spec!r} ({reason_of(error)})"
        raise UserError(f"{problem}; see open_clip.list_pretrained()") from error


def _transformers_model(spec: str) -> CLIPModel | CLIPVisionModel:
    whole = read(AutoConfig, spec).model_type == "clip"
    return read_model(CLIPModel if whole else CLIPVisionModel, spec)
