"""A training step of XTI, which encodes its prompt for 16 layers, against one of Textual Inversion.

    python benchmarks/method_step.py [--batch 8] [--threads 1] [--rounds 10]

The bar: at most 1.3. All samples of a batch share one prompt, so a step encodes 16 rows against one at any batch.
"""

import argparse
from types import SimpleNamespace

import torch
from common import bundled, side_by_side

from escdiff.methods.ti import TI
from escdiff.methods.xti import XTI
from escdiff.training.method.module import MethodModule
from escdiff.training.method.references import ReferenceData, References


def make_step(method, batch_size: int):
    """One whole step: batch, forward, backward, optimizer."""
    data = ReferenceData(method, References(["noise"], torch.rand(1, 3, 128, 128) * 2 - 1), batch_size, seed=0)
    module = MethodModule(method, 5e-3, 100)
    module.trainer = SimpleNamespace(global_step=0)
    optimizer = module.configure_optimizers()["optimizer"]

    def step() -> None:
        module.on_fit_start()
        module.training_step(data.batch(0), 0)["loss"].backward()
        module.on_after_backward()
        optimizer.step()
        optimizer.zero_grad()
        module.on_fit_end()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("batch", 8), ("threads", 1), ("rounds", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    backbone = bundled()
    steps = {"ti": make_step(TI(backbone), args.batch), "xti": make_step(XTI(backbone), args.batch)}
    times = side_by_side(args.rounds, **steps)
    print(f"batch {args.batch}, {args.threads} threads")
    for name, seconds in times.items():
        print(f"{name:4s} {1000 * seconds:8.0f} ms   {seconds / times['ti']:.2f} x TI")


if __name__ == "__main__":
    main()
