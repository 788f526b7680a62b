"""Shared by the benchmarks: the bundled model (before it is trained, its architecture) and fair timing."""

import statistics
import time
from collections.abc import Callable

from escdiff.backbone import Backbone, load_backbone, mini_folder
from escdiff.mini import parts as mini


def bundled() -> Backbone:
    """`mini`; with random weights where it has not been trained yet, which changes no time."""
    if (mini_folder() / "model_index.json").is_file():
        return load_backbone("mini")
    from transformers import CLIPTextModel

    text = CLIPTextModel(mini.make_clip().config.text_config)
    return Backbone(mini.make_unet(), mini.make_vae(), text, mini.make_tokenizer(), mini.make_scheduler(), "mini")


def side_by_side(rounds: int, **runs: Callable[[], None]) -> dict[str, float]:
    """Median CPU seconds of each, measured in turns: what other programs do matters little to either.

    On a free machine and one thread, CPU seconds are seconds.
    """
    for run in runs.values():
        run()  # warm up
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(values) for name, values in times.items()}
