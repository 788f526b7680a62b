"""A guided picture with a full P+ grid against the stock pipeline with the same U-Net.

    python benchmarks/pipeline_overhead.py [--model mini] [--pixels 128] [--steps 30] [--batch 1] [--rounds 5]
    python benchmarks/pipeline_overhead.py --model sd15 --pixels 64 --rounds 2      # random weights

The bar: at most 1.03 for sd15. Both paint latents from ready embeddings; encoding the grid's 16 prompts is measured
apart, since it does not grow with the picture and a small one makes it look large.
"""

import argparse

import torch
from common import bundled, side_by_side

from escdiff.backbone import Backbone
from escdiff.conditioning import bind
from escdiff.conditioning.grid import expand, pack


def random_sd(name: str) -> Backbone:
    """Stable Diffusion's real configuration with random weights, which change no time."""
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import AutoConfig, CLIPTextModel

    from escdiff.backbone.identify import ARCHITECTURES
    from escdiff.mini.parts import make_tokenizer

    unet, vae = (
        kind.from_config(kind.load_config(ARCHITECTURES / name, subfolder=part))
        for kind, part in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"))
    )
    text = CLIPTextModel(AutoConfig.from_pretrained(ARCHITECTURES / name / "text_encoder"))
    return Backbone(unet, vae, text, make_tokenizer(), DDIMScheduler(), name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("mini", "sd15", "sd21"), default="mini")
    for name, default in (("pixels", 128), ("steps", 30), ("batch", 1), ("threads", 1), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    backbone = bundled() if args.model == "mini" else random_sd(args.model)
    space, texts = backbone.p_plus(), ["a photo of a <shape>"] * args.batch
    pipeline = backbone.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    vectors = backbone.prompts.word_embedding("mug").expand(args.batch, space.num_layers, 1, 1, -1)
    vectors = vectors + 0.01 * torch.randn(vectors.shape)  # every layer its own

    @torch.no_grad()
    def encode() -> torch.Tensor:
        return backbone.prompts.encode(texts, {"<shape>": vectors})

    plain = backbone.prompts.encode_plain([""] * args.batch).detach()
    grid, empty = pack(encode()[:, :, 0]), pack(expand(plain, space.num_layers, 1)[:, :, 0])
    stock, nothing = grid[:, : plain.shape[3]], plain[:, 0, 0]

    def paint(embeds: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
        return pipeline(
            prompt_embeds=embeds, negative_prompt_embeds=negative, num_inference_steps=args.steps,
            guidance_scale=5.0, generator=torch.Generator().manual_seed(0), output_type="latent",
            height=args.pixels, width=args.pixels,
        ).images  # fmt: skip

    def with_grid() -> None:
        with bind(backbone.unet, space):
            paint(grid, empty)

    times = side_by_side(args.rounds, stock=lambda: paint(stock, nothing), grid=with_grid, encode_grid=encode)
    print(f"{args.model}, {args.pixels} pixels, {args.steps} guided steps, batch {args.batch}, {args.threads} threads")
    for name, seconds in times.items():
        print(f"{name:12s} {1000 * seconds:8.0f} ms   {seconds / times['stock']:.3f} x stock")


if __name__ == "__main__":
    main()
