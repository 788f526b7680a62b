"""Stable Diffusion's U-Net: a cell for each transformer, every cell's whole text packed (`escdiff.conditioning`)."""

from torch import Tensor, nn

from escdiff.backbone.family.base import Family
from escdiff.backbone.family.noise import Diffusion
from escdiff.backbone.family.residuals import Residuals, add_residual
from escdiff.conditioning import Binding, ConditioningSpace, bind, layer_groups
from escdiff.conditioning.binding import TOKENS
from escdiff.conditioning.grid import pack_stages
from escdiff.support.errors import UserError


class UNet(Family):
    """SD 1.x, 2.x and XL. CLIP's states are read as they are."""

    name, models = "sd", ("UNet2DConditionModel",)
    pipelines = (
        "StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline",
        "StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline",
    )  # fmt: skip
    noise = Diffusion

    def cells(self, model: nn.Module) -> tuple[tuple[str, ...], ...]:
        return tuple(layer_groups(model).values())

    def text_width(self, model: nn.Module) -> int:
        return model.config.cross_attention_dim

    def attach(self, model: nn.Module, space: ConditioningSpace) -> Binding:
        self.check_space(model, space)
        return bind(model, space)

    def write(self, text_BTD: Tensor, residuals: Residuals) -> Tensor:
        if text_BTD.shape[1] != TOKENS:
            raise UserError(f"text of {text_BTD.shape[1]} tokens was given; the U-Net's layers are bound to {TOKENS}")
        batch, layers, stages = residuals.values.shape[:3]
        text = text_BTD[:, None].expand(-1, layers * stages, -1, -1).flatten(0, 1)
        values = residuals.values.flatten(1, 2).flatten(0, 1)
        where = residuals.positions[:, None].expand(-1, layers * stages, -1).flatten(0, 1).to(text.device)
        return pack_stages(add_residual(text, values.to(text), where).unflatten(0, (batch, layers, stages)))
