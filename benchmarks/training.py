"""The encoder's training against what it could cost: one command, ratios of one run.

    python benchmarks/training.py [--batch 16] [--rounds 5] [--device cpu] [--dtype float32] [--sd15]

`--batch` counts noised latents. `--sd15` takes Stable Diffusion 1.5's architecture with random weights, at 512 pixels;
on a GPU add --device cuda --dtype bfloat16. The step against the bare U-Net: benchmarks/encoder_step.py.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from common import bundled
from torch.utils.flop_counter import FlopCounterMode

from escdiff.backbone import Backbone
from escdiff.concept import ATTRIBUTES, placeholder
from escdiff.encoder import ConceptEncoder, EncoderConfig
from escdiff.encoder.vision import TransformersVision
from escdiff.mini import parts as mini
from escdiff.mini.data.still_life import StillLifeOptions, make_still_life
from escdiff.support.config.data import DataConfig
from escdiff.support.config.loss import LossConfig
from escdiff.support.config.train import TrainConfig
from escdiff.support.config.trainer import OptimConfig, TrainerConfig
from escdiff.support.logging import quiet_libraries
from escdiff.training.encoder.module import EncoderModule
from escdiff.training.loop import run
from escdiff.training.loop.callbacks import Checkpoints
from escdiff.training.loop.monitoring.speed import matrix_rate, synchronize

TEXT = "a photo of a <appearance> <shape> on a navy background"
LATE = "a plain photo " * 13  # puts the placeholder at token 40


def sd15() -> Backbone:
    """SD 1.5's architecture, random."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, sample_size=512, layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
    )  # fmt: skip
    text = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
                          eos_token_id=49407, bos_token_id=49406, pad_token_id=49407)  # fmt: skip
    unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)  # the defaults are SD 1's
    return Backbone(unet, vae, CLIPTextModel(text), mini.make_tokenizer(), mini.make_scheduler(), "sd15")


def tower(name: str) -> TransformersVision:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config = mini.make_clip().config.vision_config
    if name == "sd15":  # ViT-L/14
        config = CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24,
                                  num_attention_heads=16, patch_size=14)  # fmt: skip
    return TransformersVision(CLIPVisionModel(config), name).freeze()


class Bench:
    """One backbone, one encoder, one batch."""

    def __init__(self, backbone: Backbone, name: str, batch: int, device: str, dtype: torch.dtype) -> None:
        self.backbone, self.batch = backbone.to(device, dtype), batch
        self.device, self.dtype = torch.device(device), dtype
        backbone.unet.requires_grad_(False), backbone.text_encoder.requires_grad_(False)
        self.vision = tower(name).to(device)
        depths = {} if name == "mini" else {"shape_depths": (7, 15, 23), "appearance_depths": (0, 7, 23)}
        config = EncoderConfig(**depths)
        self.encoder = ConceptEncoder.for_backbone(config, self.vision, backbone, backbone.p_plus()).to(device)
        self.size = backbone.unet.config.sample_size * 8

    def module(self, **objective) -> EncoderModule:
        module = EncoderModule(self.encoder, self.backbone, LossConfig(**objective), lr=1e-4, max_steps=100, warmup=1)
        module.trainer = SimpleNamespace(global_step=51, log_every_n_steps=10**9)  # neither words only nor the end
        return module

    def data(self, draws: int) -> dict:
        count, side = self.batch // draws, self.size
        rand = lambda *shape: torch.rand(count, *shape, device=self.device)  # noqa: E731
        names = ("shape_ref", "appearance_ref", "pixels")
        channels = 2 * self.backbone.vae.config.latent_channels
        return {
            **{name: rand(3, side, side) * 2 - 1 for name in names}, "mask": rand(1, side, side).round(),
            "latent": rand(channels, side // 8, side // 8), "prompt": [TEXT] * count,
        }  # fmt: skip

    def step(self, draws: int, cells: int, live: bool = False, exact: bool = False):
        """One whole step of ours; `live` encodes the latents, `exact` gives every layer its own row."""
        module = self.module(draws=draws, cells=cells, exact_from=0.0 if exact else 0.9)
        batch = self.data(draws)
        if live:
            batch.pop("latent")
        optimizer = module.configure_optimizers()["optimizer"]

        def run_step() -> None:
            module._feed = None
            module.on_fit_start()
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                loss = module.training_step(batch, 0)["loss"]
            loss.backward()
            module.on_fit_end()
            optimizer.step()
            optimizer.zero_grad()

        return run_step

    def naive(self):
        """A straightforward loop: the VAE live, every sample its own picture, 16 calls of the text encoder."""
        batch, layers = self.data(1), self.encoder.space.num_layers
        optimizer = torch.optim.AdamW([p for p in self.encoder.parameters() if p.requires_grad], 1e-4)
        backbone, module = self.backbone, self.module(draws=1)

        def run_step() -> None:
            moments = backbone.moments(batch["pixels"])
            latents = backbone.sample_latents(moments.float())
            tokens = self.encoder.tokens_of({a: batch[f"{a}_ref"] for a in ATTRIBUTES})
            features = {a: self.encoder.features(a, tokens[a], None) for a in ATTRIBUTES}
            nobody = torch.zeros(self.batch, dtype=torch.bool, device=self.device)
            vectors = {placeholder(a): self.encoder.vectors(a, self.encoder.residuals(a, features[a], nobody))
                       for a in ATTRIBUTES}  # fmt: skip
            module.on_fit_start()
            calls = ({n: v[:, layer : layer + 1] for n, v in vectors.items()} for layer in range(layers))
            grid = torch.cat([backbone.prompts.encode(batch["prompt"], call)[:, :, 0] for call in calls], 1)
            noise, timesteps = torch.randn_like(latents), torch.randint(0, 1000, (self.batch,), device=self.device)
            noisy = backbone.add_noise(latents, noise, timesteps)
            output = backbone.predict(noisy, timesteps, module._feed.layers.load(grid)).float()
            (output - backbone.target(latents, noise, timesteps)).square().mean().backward()
            module.on_fit_end()
            optimizer.step()
            optimizer.zero_grad()

        return run_step

    def texts(self, prompt: str, naive: bool):
        """16 different rows of one prompt, forward and backward."""
        layers = self.encoder.space.num_layers
        kind = {"device": self.device, "dtype": self.backbone.dtype, "requires_grad": True}
        vectors = torch.randn(1, layers, 1, 2, self.backbone.width, **kind)

        def run_step() -> None:
            parts = vectors.split(1, 1) if naive else (vectors,)
            for part in parts:
                self.backbone.prompts.encode([prompt], {"<shape>": part}).float().square().mean().backward()
            vectors.grad = None

        return run_step


def clock(device: torch.device):
    """CPU seconds on a CPU, so that what else runs there matters little; else wall-clock."""
    return time.process_time if device.type == "cpu" else time.perf_counter


def measure(device: torch.device, rounds: int, **runs) -> dict[str, float]:
    """Median seconds in turns."""
    times = {name: [] for name in runs}
    for turn in range(rounds + 1):
        for name, run_once in runs.items():
            synchronize(device)
            start = clock(device)()
            run_once()
            synchronize(device)
            if turn:  # the first warms up
                times[name].append(clock(device)() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def flops(run_once) -> int:
    with FlopCounterMode(display=False) as counter:
        run_once()
    return counter.get_total_flops()


def loop(batch: int, steps: int = 6) -> dict[str, float]:
    """Shares of a real run of `mini`: waiting for data; the stall of a checkpoint in steps."""
    quiet_libraries()
    stalls, save = [], Checkpoints.save

    def timed(self, trainer, module) -> None:
        start = time.monotonic()
        save(self, trainer, module)
        stalls.append(time.monotonic() - start)

    Checkpoints.save = timed
    with tempfile.TemporaryDirectory() as folder:
        make_still_life(Path(folder) / "world", 512, StillLifeOptions(seed=1))
        config = TrainConfig(
            run_dir=f"{folder}/run", optim=OptimConfig(lr=1e-4), loss=LossConfig(words_only=0.0),
            data=DataConfig(root=f"{folder}/world", batch_size=batch // LossConfig.draws, val_fraction=0.0),
            trainer=TrainerConfig(
                max_steps=steps, accelerator="cpu", devices=1, log_steps=1, save_steps=2, val_steps=0, sample_steps=0
            ),
        )  # fmt: skip
        run.train(config)
        lines = run.RunFolder(config.run_dir).lines()
    Checkpoints.save = save
    references = batch // LossConfig.draws
    seconds = [references / line["throughput/samples_per_s"] for line in lines[1::2]]  # without a checkpoint
    waits = [line["throughput/wait_share"] for line in lines[1:]]
    return {"wait_share": statistics.median(waits), "stall": statistics.median(stalls) / statistics.median(seconds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("batch", 16), ("rounds", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--sd15", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    name, dtype = ("sd15", getattr(torch, args.dtype)) if args.sd15 else ("mini", getattr(torch, args.dtype))
    bench = Bench(sd15() if args.sd15 else bundled(), name, args.batch, args.device, dtype)
    late = f"{LATE}<shape>"
    runs = {
        "recipe": bench.step(LossConfig.draws, LossConfig.cells), "exact": bench.step(1, 0, exact=True),
        "exact, VAE live": bench.step(1, 0, live=True, exact=True),
        "16 texts at 5": bench.texts(TEXT.replace("<appearance> ", ""), False),
        "16 calls at 5": bench.texts(TEXT.replace("<appearance> ", ""), True),
        "16 texts at 40": bench.texts(late, False), "16 calls at 40": bench.texts(late, True),
    }  # fmt: skip
    if dtype == torch.float32:
        runs["straightforward"] = bench.naive()
    work = {key: flops(run_once) for key, run_once in runs.items()}
    seconds = measure(bench.device, args.rounds, **runs)
    rate = matrix_rate(bench.device, dtype, clock(bench.device))
    print(f"{name}, {args.batch} noised latents of {bench.size} pixels, {args.device}, {args.dtype}; "
          f"matrix rate {rate / 1e9:.0f} GFLOP/s")  # fmt: skip
    for key, value in seconds.items():
        share = work[key] / value / rate
        print(f"{key:16s} {1000 * value:9.1f} ms {work[key] / 1e9:9.1f} GFLOP {share:6.1%} of the rate")
    gained, allowed = (x["exact, VAE live"] / x["exact"] for x in (seconds, work))
    print(f"VAE live / cached: {gained:.2f}, the FLOPs allow {allowed:.2f}: {gained / allowed:.0%}")
    for at in (5, 40):
        print(f"16 calls / one, placeholder at {at}: {seconds[f'16 calls at {at}'] / seconds[f'16 texts at {at}']:.2f}")
    if "straightforward" in seconds:
        for key in ("exact", "recipe"):
            print(f"straightforward / {key}: {seconds['straightforward'] / seconds[key]:.2f}")
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        runs["exact"]()
        print(f"peak memory {torch.cuda.max_memory_allocated() / 1e9:.1f} GB, of which {args.batch} samples")
    elif not args.sd15:
        figures = loop(args.batch)
        print(
            f"waiting for data: {figures['wait_share']:.2%} of a step; a checkpoint stalls {figures['stall']:.2f} steps"
        )


if __name__ == "__main__":
    main()
