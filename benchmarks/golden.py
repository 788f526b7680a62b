"""Whether two checkouts make the same bytes: `python benchmarks/golden.py BEFORE AFTER`.

For a change that must change nothing, such as files that move. Each checkout paints the default grid of `infer.py`,
trains the encoder for 20 steps and XTI for 20, and renders one shard set, on one thread and from the same seeds. Hashes
are of pixels, of exported tensors and of shards, so that a file's date or version says nothing. They depend on the
machine and on the versions of torch, hence two checkouts side by side and no stored values.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file

STEPS = 20
TRAIN = ("trainer.threads=1", f"trainer.max_steps={STEPS}", "trainer.sample_steps=0")
DATA = ("data.num_samples=256", "data.batch_size=4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkouts", nargs="+", type=Path, help="one: print its hashes; two: compare them")
    folders = [folder.resolve() for folder in parser.parse_args().checkouts]
    columns = [hashes(folder) for folder in folders]
    table = Table("", *(folder.name for folder in folders), "equal")
    equal = {name: len({column[name] for column in columns}) == 1 for name in columns[0]}
    for name, same in equal.items():
        table.add_row(name, *(column[name][:16] for column in columns), "yes" if same else "NO")
    Console().print(table)
    raise SystemExit(not all(equal.values()))


def hashes(checkout: Path) -> dict[str, str]:
    """Result of a checkout -> its SHA-256."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        run(checkout, "infer.py", f"out={out}/infer", "device=cpu")
        world = f"data.still_life={out}/world"
        run(checkout, "train.py", *TRAIN, *DATA, world, "data.render_workers=1", f"run_dir={out}/encoder")
        picture = checkout / "escdiff" / "assets" / "examples" / "mug.png"
        run(checkout, "train.py", "method=xti", f"data.references={picture}", *TRAIN, f"run_dir={out}/xti")
        grid = np.asarray(Image.open(next((out / "infer").rglob("grid.png"))).convert("RGB"))
        return {
            "infer.py's grid": digest(grid.tobytes()),
            f"encoder, {STEPS} steps": of_tensors(out / "encoder" / "export" / "model.safetensors"),
            f"XTI, {STEPS} steps": of_tensors(out / "xti" / "export" / "concept.safetensors"),
            "shards of 256 pictures": digest(*(file.read_bytes() for file in sorted(out.glob("world/**/*.tar")))),
        }


def run(checkout: Path, *command: str) -> None:
    """A door of the checkout, with its own `escdiff` and one thread.

    Raises:
        SystemExit: it failed; its last words are printed.
    """
    environment = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *command], cwd=checkout, env=environment, text=True, capture_output=True)
    if done.returncode:
        raise SystemExit(f"{checkout.name}: {' '.join(command)} failed:\n{done.stderr[-2000:]}")


def of_tensors(file: Path) -> str:
    """Of names, shapes and values."""
    tensors = load_file(file)
    return digest(
        *(
            part
            for name in sorted(tensors)
            for part in (f"{name}{tensors[name].shape}".encode(), tensors[name].tobytes())
        )
    )


def digest(*parts: bytes) -> str:
    if not parts:
        raise SystemExit("nothing to hash: expected files are missing")
    return hashlib.sha256(b"".join(parts)).hexdigest()


if __name__ == "__main__":
    main()
