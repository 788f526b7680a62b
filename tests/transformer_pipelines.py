"""Stock pipelines over tiny random transformers, text encoders and VAEs, built offline."""

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLQwenImage,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    QwenImagePipeline,
    SanaPipeline,
    StableDiffusion3Pipeline,
)
from families import build
from tiny import make_vae, seeded
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from escdiff.mini.parts import make_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ("▁a", "▁photo", "▁of", "▁mug", "▁red", "▁on", "▁beach", "ug", "ed", "▁dog")


def make_t5_tokenizer() -> T5Tokenizer:
    """A unigram vocabulary of some words and all letters."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(word, -2.0) for word in WORDS] + [(letter, -5.0) for letter in LETTERS]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


@seeded
def make_t5(width: int = 32) -> T5EncoderModel:
    config = T5Config(
        vocab_size=64, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=4, pad_token_id=0, eos_token_id=1
    )
    return T5EncoderModel(config).eval()


@seeded
def make_clip(kind: type = CLIPTextModelWithProjection, width: int = 16, projection: int = 32):
    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, projection_dim=projection,
        vocab_size=49408, max_position_embeddings=77, bos_token_id=49406, eos_token_id=49407, pad_token_id=49407,
    )  # fmt: skip
    return kind(config).eval()


@seeded
def make_shifted_vae(channels: int) -> AutoencoderKL:
    """Latents off their centre, as SD 3 and FLUX.1 have them."""
    return AutoencoderKL.from_config(make_vae(channels).config, shift_factor=0.1).eval()


def make_pixart() -> PixArtSigmaPipeline:
    return PixArtSigmaPipeline(
        tokenizer=make_t5_tokenizer(), text_encoder=make_t5(), vae=make_vae(4), transformer=build("pixart"),
        scheduler=DDIMScheduler(),
    )  # fmt: skip


def make_sd3() -> StableDiffusion3Pipeline:
    return StableDiffusion3Pipeline(
        transformer=build("sd3"), scheduler=FlowMatchEulerDiscreteScheduler(), vae=make_shifted_vae(4),
        text_encoder=make_clip(), tokenizer=make_tokenizer(), text_encoder_2=make_clip(seed=1),
        tokenizer_2=make_tokenizer(), text_encoder_3=make_t5(), tokenizer_3=make_t5_tokenizer(),
    )  # fmt: skip


def make_flux() -> FluxPipeline:
    transformer = build("flux")
    assert isinstance(transformer, FluxTransformer2DModel)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=make_shifted_vae(1), text_encoder=make_clip(CLIPTextModel, 32),
        tokenizer=make_tokenizer(), text_encoder_2=make_t5(), tokenizer_2=make_t5_tokenizer(), transformer=transformer,
    )  # fmt: skip


@seeded
def make_gemma() -> Gemma2Model:
    config = Gemma2Config(
        vocab_size=64, hidden_size=8, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, bos_token_id=2, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return Gemma2Model(config).eval()


def make_gemma_tokenizer() -> GemmaTokenizer:
    """Letters, and a start mark as Gemma's own has it."""
    pieces = ("<pad>", "<eos>", "<bos>", "<unk>", "▁", *LETTERS)
    tokenizer = GemmaTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, merges=[])
    start = TemplateProcessing(single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", 2)])
    tokenizer.backend_tokenizer.post_processor = start
    return tokenizer


@seeded
def make_sana_vae() -> AutoencoderDC:
    blocks = ("ResBlock",) * 4
    return AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=blocks, decoder_block_types=blocks,
        encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, encoder_qkv_multiscales=((),) * 4,
        decoder_qkv_multiscales=((),) * 4, encoder_layers_per_block=(1,) * 4, decoder_layers_per_block=(1,) * 4,
        downsample_block_type="conv", upsample_block_type="interpolate", scaling_factor=0.4,
    ).eval()  # fmt: skip


def make_sana() -> SanaPipeline:
    return SanaPipeline(
        tokenizer=make_gemma_tokenizer(), text_encoder=make_gemma(), vae=make_sana_vae(), transformer=build("sana"),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip


@seeded
def make_qwen_text() -> Qwen2_5_VLForConditionalGeneration:
    text = {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 1024, "bos_token_id": 0,
        "eos_token_id": 0, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
    }  # fmt: skip
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    return Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(text_config=text, vision_config=vision)).eval()


def make_qwen_tokenizer() -> Qwen2Tokenizer:
    """A token for every byte."""
    letters = ["<|endoftext|>", *sorted(ByteLevel.alphabet())]
    return Qwen2Tokenizer(vocab={letter: number for number, letter in enumerate(letters)}, merges=[])


@seeded
def make_qwen_vae() -> AutoencoderKLQwenImage:
    return AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.1, 0.2, 0.0], latents_std=[1.0, 0.5, 2.0, 1.0],
    ).eval()  # fmt: skip


def make_qwen() -> QwenImagePipeline:
    pipeline = QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(), vae=make_qwen_vae(), text_encoder=make_qwen_text(),
        tokenizer=make_qwen_tokenizer(), transformer=build("qwen"),
    )  # fmt: skip
    before = pipeline.prompt_template_encode.partition("{}")[0]
    pipeline.prompt_template_encode_start_idx = len(pipeline.tokenizer.encode(before))  # 34 tokens of Qwen's own
    return pipeline


PIPELINES = {"pixart": make_pixart, "sana": make_sana, "sd3": make_sd3, "flux": make_flux, "qwen": make_qwen}
BINNING = {"use_resolution_binning": False}
SIZES = {"pixart": BINNING, "sana": BINNING, "sd3": {}, "flux": {}, "qwen": {}}


@torch.no_grad()
def paint(name: str, pipeline, prompt, **options) -> torch.Tensor:
    """Latents after two steps, from the same noise."""
    pipeline.set_progress_bar_config(disable=True)
    call = {"num_inference_steps": 2, "height": 64, "width": 64, "max_sequence_length": 24, "output_type": "latent"}
    return pipeline(prompt, **call | SIZES[name] | options, generator=torch.Generator().manual_seed(0)).images
