"""A guided picture with a full P+ grid against the stock pipeline with the same U-Net.

    python benchmarks/pipeline_overhead.py [--steps 25] [--batch 1] [--threads 1] [--rounds 5]

The bar: at most 1.10. Both paint from ready embeddings; encoding the grid's 16 prompts is measured apart.
"""

import argparse

import torch
from common import bundled, side_by_side

from escdiff.conditioning import bind
from escdiff.conditioning.grid import expand, pack


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("steps", 25), ("batch", 1), ("threads", 1), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    backbone = bundled()
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
            guidance_scale=5.0, generator=torch.Generator().manual_seed(0), output_type="pt",
        ).images  # fmt: skip

    def with_grid() -> None:
        with bind(backbone.unet, space):
            paint(grid, empty)

    times = side_by_side(args.rounds, stock=lambda: paint(stock, nothing), grid=with_grid, encode_grid=encode)
    print(f"{args.steps} guided steps, batch {args.batch}, {args.threads} threads")
    for name, seconds in times.items():
        print(f"{name:12s} {1000 * seconds:8.0f} ms   {seconds / times['stock']:.3f} x stock")


if __name__ == "__main__":
    main()
