"""IP-Adapter (Ye et al. 2023, arXiv 2308.06721): a picture as four tokens that every layer attends to beside the text.

Space: none; the prompt keeps its ordinary word and the picture enters by decoupled cross-attention (eq. 5). Paper: 22 M
parameters, CLIP-H's pooled embedding, lr 1e-4, weight decay 0.01, picture, text or both dropped in 5 % each, some 10 M
pairs. The processors, the loader and the file are diffusers' own. Ours: learned on ESCDiff's data.
"""

from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from escdiff.backbone import Backbone, mini_folder
from escdiff.concept import IMAGE_TOKENS
from escdiff.conditioning import ConditioningSpace
from escdiff.data.images import to_pil
from escdiff.errors import UserError
from escdiff.methods.learned import EncoderMethod
from escdiff.methods.weights import SCALE, ImageAttention

TOKENS = 4  # that diffusers' loader takes for granted


class IPAdapter(EncoderMethod):
    """Image attention in every layer.

    Args:
        image_encoder: "mini" (the bundled model's), or a folder or hub id of a CLIP with its projection.
        init: word that stands in the prompt.
        scale: of the picture beside the text, at inference; 0.5 to 0.8 leave more to the text.
        drop: share of samples without the picture, without the text, and without both, each.
    """

    few, many = 1, 1

    def __init__(
        self, backbone: Backbone, image_encoder: str = "mini", init: str = "object", scale: float = 0.7,
        drop: float = 0.05, templates="auto",
    ) -> None:  # fmt: skip
        super().__init__(backbone, ConditioningSpace.p(backbone.unet), init, 1, templates)
        self.scale, self.drop = scale, drop
        self._vision = load_image_encoder(image_encoder)
        embed, width = self._vision[0].config.projection_dim, backbone.width
        projection = {
            "proj.weight": torch.randn(TOKENS * width, embed) * embed**-0.5, "proj.bias": torch.zeros(TOKENS * width),
            "norm.weight": torch.ones(width), "norm.bias": torch.zeros(width),
        }  # fmt: skip
        self.use_weights(ImageAttention(backbone, projection))
        self.register_buffer("picture", torch.zeros(embed), persistent=False)

    @torch.no_grad()
    def embed(self, pictures: Tensor | list) -> Tensor:
        """CLIP's embeddings (B, E) of pixels (B, 3, H, W) in [-1, 1], or of PIL pictures as diffusers takes them."""
        model, processor = self._vision
        if isinstance(pictures, Tensor):
            found = processor(list((pictures.float().cpu() + 1) / 2), do_rescale=False, return_tensors="pt")
        else:
            found = processor(pictures, return_tensors="pt")
        return model.to(self.picture.device)(found.pixel_values.to(self.picture.device)).image_embeds

    def start(self, pixels: Tensor, masks: Tensor | None = None) -> None:
        self.picture.copy_(self.embed([to_pil(picture) for picture in pixels]).mean(0))

    def vectors(self, batch) -> dict[str, Tensor]:
        return {"concept": self.anchor("concept")[None, None, None]}

    def texts(self, prompts) -> list[str]:
        """The prompts, some of them empty; the same draw of a sample decides over its picture, see `added`."""
        self._draw = torch.rand(len(prompts))
        empty = self._draw < 2 * self.drop
        return ["" if gone else text for gone, text in zip(empty, super().texts(prompts), strict=True)]

    def added(self, batch) -> dict:
        embeds = self.embed(batch["pixels"])
        kept = (self._draw < self.drop) | (self._draw >= 3 * self.drop)
        return {"added_cond_kwargs": {"image_embeds": [(embeds * kept.to(embeds)[:, None])[:, None]]}}

    def extras(self) -> dict[str, Tensor]:
        return {IMAGE_TOKENS: self.picture.cpu().clone()}

    def concept(self, notes=None):
        return super().concept({SCALE: str(self.scale), **(notes or {})})


def load_image_encoder(name: str) -> tuple[CLIPVisionModelWithProjection, CLIPImageProcessor]:
    """CLIP's vision tower with its projection, frozen, and its preprocessor.

    Raises:
        UserError: nothing loadable under that name.
    """
    source = str(mini_folder() / "clip") if name == "mini" else str(Path(name).expanduser())
    try:
        model = CLIPVisionModelWithProjection.from_pretrained(source, dtype=torch.float32, use_safetensors=True)
    except (OSError, ValueError) as error:
        what = f"no image encoder from {name!r} ({str(error).strip().splitlines()[0]})"
        raise UserError(f"{what}; give mini, or a CLIP's folder or hub id") from error
    size = model.config.image_size
    return model.requires_grad_(False).eval(), CLIPImageProcessor(size=size, crop_size=size)
