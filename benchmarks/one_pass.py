"""From image file to concept against one bare forward pass of the vision tower.

    python benchmarks/one_pass.py [--threads 2] [--rounds 20]

The bar: less than 10. Reading and decoding the file, both filters and all layers' vectors are included.
"""

import argparse
from pathlib import Path

import torch
from common import bundled, side_by_side

from escdiff.data.pictures import open_image
from escdiff.encoder import ConceptEncoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("threads", 2), ("rounds", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    encoder = ConceptEncoder.from_pretrained(backbone=bundled())
    picture = Path(__file__).parents[1] / "escdiff" / "assets" / "examples" / "mug.png"
    pixels = torch.rand(1, 3, encoder.vision.image_size, encoder.vision.image_size) * 2 - 1

    @torch.no_grad()
    def bare() -> None:
        encoder.vision(pixels)

    times = side_by_side(args.rounds, bare=bare, file_to_concept=lambda: encoder.encode(open_image(picture)))
    for name, seconds in times.items():
        print(f"{name:16s} {1000 * seconds:7.1f} ms   {seconds / times['bare']:.2f} x bare")


if __name__ == "__main__":
    main()
