"""Cost of reading and steering by attention maps on Stable Diffusion 1.5's real configuration, random weights.

    python benchmarks/control_cost.py [PIXELS]

One picture of PIXELS a side (512), float32, this process's threads. Prints a Markdown table: CPU seconds of one call,
and how much the process's largest memory grew above the U-Net's weights.
"""

import resource
import sys
import threading
import time
from collections.abc import Callable

import torch
from real_sizes import filled, shapes

from escdiff.conditioning import cross_attention_layers
from escdiff.control.descent import value_and_gradient
from escdiff.control.maps import AttentionMaps, choose
from escdiff.control.objectives import excite, like

TOKENS, WIDTH = 77, 768


def resident() -> float:
    """GB of this process in memory now."""
    with open("/proc/self/statm", encoding="utf-8") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 1e9


def measured(run: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds of a call, and GB that it took at most."""
    before, most, done = resident(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            most[0] = max(most[0], resident() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.process_time()
    run()
    seconds = time.process_time() - start
    done.set()
    watcher.join()
    return seconds, most[0]


def main(pixels: int) -> None:
    """Measure and print."""
    unet = filled(shapes()["unet"]).requires_grad_(False).eval()
    latents, states = torch.randn(1, 4, pixels // 8, pixels // 8), torch.randn(1, TOKENS, WIDTH)
    every, maps_of = cross_attention_layers(unet), {}

    def call(x: torch.Tensor = latents) -> None:
        unet(x, 500, encoder_hidden_states=states)

    def read(layers: int | list[str]) -> None:
        with AttentionMaps(unet, layers) as maps:
            call()
            if isinstance(layers, int):
                maps.average()
            else:
                maps_of.update({name: maps.layer(name) for name in layers})

    def excited() -> None:
        with AttentionMaps(unet, 4) as maps:

            def loss(x: torch.Tensor) -> torch.Tensor:
                call(x)
                return excite(choose(maps.average(), [[2, 5]]))

            value_and_gradient(loss, latents)

    def held() -> None:
        with AttentionMaps(unet, every) as maps:

            def loss(x: torch.Tensor) -> torch.Tensor:
                call(x)
                return sum(like(maps.layer(name), maps_of[name]) for name in every)

            value_and_gradient(loss, latents)

    runs: dict[str, Callable[[], None]] = {
        "a pass of the U-Net": call,
        "a pass, maps at factor 4 (5 layers)": lambda: read(4),
        "a pass, maps at factor 2": lambda: read(2),
        "a pass, maps of all 16 layers": lambda: read(every),
        "an update, maps at factor 4 (Attend-and-Excite, CONFORM)": excited,
        "an update, maps of all layers (pix2pix-zero)": held,
    }
    with torch.no_grad():
        call()  # warm up
    print("| | CPU seconds | GB above the weights |\n|---|---:|---:|")
    for name, run in runs.items():
        if name.startswith("an update"):
            unet.enable_gradient_checkpointing()
            unet.train()  # which checkpointing asks for; it has no dropout
        with torch.set_grad_enabled(name.startswith("an update")):
            seconds, memory = measured(run)
        print(f"| {name} | {seconds:.1f} | {memory:.2f} |", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 512)
