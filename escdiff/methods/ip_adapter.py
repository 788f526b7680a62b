"""IP-Adapter (Ye et al. 2023, arXiv 2308.06721): a picture as four tokens that every layer attends to beside the text.

Space: none; the prompt keeps its ordinary word and the picture enters by decoupled cross-attention (eq. 5). Paper: 22 M
parameters, CLIP-H's pooled embedding, lr 1e-4, weight decay 0.01, picture, text or both dropped in 5 % each, some 10 M
pairs. The processors, the loader and the file are diffusers' own. Ours: learned on ESCDiff's data.
"""

import torch
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from escdiff.backbone import Backbone
from escdiff.backbone.adapters.attached import SCALE, ImageAttention
from escdiff.concept import IMAGE_TOKENS
from escdiff.conditioning import ConditioningSpace
from escdiff.data.pictures import to_pil
from escdiff.data.pretrained import read_model
from escdiff.methods.encoder_method import EncoderMethod

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
        """The prompts, a share of them empty: without the text alone, or without both."""
        empty = torch.rand(len(prompts)) < 2 * self.drop
        return ["" if gone else text for gone, text in zip(empty, super().texts(prompts), strict=True)]

    def added(self, batch) -> dict:
        """The pictures, some of them dropped: half of those without a text, and as many with one."""
        empty = torch.tensor([not text for text in batch["texts"]])
        without = torch.where(empty, 0.5, self.drop / (1 - 2 * self.drop))
        kept = torch.rand(len(without)) >= without
        embeds = self.embed(batch["pixels"])
        return {"added_cond_kwargs": {"image_embeds": [(embeds * kept.to(embeds)[:, None])[:, None]]}}

    def extras(self) -> dict[str, Tensor]:
        return {IMAGE_TOKENS: self.picture.cpu().clone()}

    def concept(self, notes=None):
        return super().concept({SCALE: str(self.scale), **(notes or {})})


def load_image_encoder(name: str) -> tuple[CLIPVisionModelWithProjection, CLIPImageProcessor]:
    """CLIP's vision tower with its projection, frozen, and its preprocessor; see `escdiff.data.pretrained.read`."""
    model = read_model(CLIPVisionModelWithProjection, name)
    size = model.config.image_size
    return model, CLIPImageProcessor(size=size, crop_size=size)
