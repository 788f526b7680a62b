"""A Stable Diffusion small enough for every test: SD's own classes, block types and layer names, random.

Nothing here touches the network; the vocabulary is the one that open_clip ships.
"""

import copy
import functools

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from escdiff.backbone import Backbone
from escdiff.mini.parts import make_tokenizer

WIDTH = 32  # of the text encoder, hence of the cross-attention
PIXELS = 128
LATENT_CHANNELS = 8


def seeded(build):
    """Run a builder under a fixed seed, leaving the global generator as it was."""

    @functools.wraps(build)
    def wrapper(*args, seed: int = 0, **kwargs):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build(*args, **kwargs)

    return wrapper


@seeded
def make_text_encoder(width: int = WIDTH) -> CLIPTextModel:
    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=4,
        projection_dim=width, vocab_size=49408, max_position_embeddings=77, hidden_act="quick_gelu",
        bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
    )  # fmt: skip
    return CLIPTextModel(config).eval()


@seeded
def make_text_encoder_2(width: int = 48) -> CLIPTextModelWithProjection:
    """SDXL's second text encoder: another width, another padding, with a projection."""
    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=3, num_attention_heads=4,
        projection_dim=24, vocab_size=49408, max_position_embeddings=77, hidden_act="gelu",
        bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    return CLIPTextModelWithProjection(config).eval()


@seeded
def make_vae(channels: int = LATENT_CHANNELS) -> AutoencoderKL:
    """f=8, eight latent channels as the bundled model has, a scaling factor that is not one."""
    return AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=channels, sample_size=PIXELS,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, scaling_factor=0.5,
    ).eval()  # fmt: skip


@seeded
def make_unet(
    width: int = WIDTH, in_channels: int = LATENT_CHANNELS, out_channels: int = LATENT_CHANNELS
) -> UNet2DConditionModel:
    """SD's block types, hence its 16 cross-attention layers (`attention_head_dim` counts heads)."""
    return UNet2DConditionModel(
        sample_size=PIXELS // 8, in_channels=in_channels, out_channels=out_channels,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=(8, 8, 16, 16), attention_head_dim=2, layers_per_block=2,
        cross_attention_dim=width, norm_num_groups=4,
    ).eval()  # fmt: skip


@seeded
def make_unet_xl() -> UNet2DConditionModel:
    """SDXL's block types, hence 11 groups; two transformer layers where it has ten."""
    return UNet2DConditionModel(
        sample_size=PIXELS // 8, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
        block_out_channels=(8, 16, 16), attention_head_dim=2, layers_per_block=2,
        transformer_layers_per_block=(1, 1, 2), cross_attention_dim=WIDTH + 48, norm_num_groups=4,
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + 6 * 8,
    ).eval()  # fmt: skip


def make_scheduler(prediction_type: str = "epsilon") -> DDIMScheduler:
    """SD's own noise schedule."""
    return DDIMScheduler(
        num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012,
        prediction_type=prediction_type, clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip


def make_backbone(**parts) -> Backbone:
    """A fresh tiny backbone; name a part (`unet=...`) to use your own."""
    return Backbone(
        unet=parts.get("unet") or make_unet(),
        vae=parts.get("vae") or make_vae(),
        text_encoder=parts.get("text_encoder") or make_text_encoder(),
        tokenizer=parts.get("tokenizer") or make_tokenizer(),
        scheduler=parts.get("scheduler") or make_scheduler(),
        name=parts.get("name", "tiny"),
        text_encoder_2=parts.get("text_encoder_2"),
        tokenizer_2=parts.get("tokenizer_2"),
    )


def copied(backbone: Backbone) -> Backbone:
    """A copy to change. Its tokenizers, which take longest to copy, are the same: add no words to them."""
    tokenizers = (backbone.tokenizer, backbone.tokenizer_2)
    return copy.deepcopy(backbone, {id(tokenizer): tokenizer for tokenizer in tokenizers})


def make_sd21() -> Backbone:
    """Stable Diffusion 2.1's shape: linear projections, heads per block, padding by "!", v-prediction."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = {**make_unet(40).config, "use_linear_projection": True, "attention_head_dim": (1, 1, 2, 2)}
        unet = UNet2DConditionModel.from_config(config).eval()
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "!"})
    return make_backbone(
        unet=unet, text_encoder=make_text_encoder(40), tokenizer=tokenizer,
        scheduler=make_scheduler("v_prediction"), name="tiny-21",
    )  # fmt: skip


def make_sdxl() -> Backbone:
    """SDXL's shape."""
    tokenizer_2 = make_tokenizer()
    tokenizer_2.add_special_tokens({"pad_token": "!"})
    return make_backbone(
        unet=make_unet_xl(), text_encoder_2=make_text_encoder_2(), tokenizer_2=tokenizer_2, name="tiny-xl"
    )
