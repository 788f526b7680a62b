"""From pictures to a customized picture on Stable Diffusion 1.5 at its real size, with random weights, offline.

    python benchmarks/journey_sd15.py [--quick] [--folder DIR] [--only train,infer]

Makes the weights (2.0 GB in float16, and a CLIP ViT-L/14 tower) and a dozen pictures with captions, then runs each
command as a user would: ingest, caption, pairs, latents, train, infer. Prints what each took, and ends with 1 where
one takes more than its bar: training at 128 px (batch 2, four noised copies, float32) 8 GB, latents 2 GB a process,
painting one picture of 512 px 6 GB, 60 s from the start to the end of the first step on two free cores. It says
nothing about the pictures.

Memory is that of the process tree (PSS), for latents of the largest process. Seconds depend on what else runs, CPU
seconds less. `--quick` paints at 64 px. With `--folder` weights, data and results stay, and a second run uses what is
there.
"""

import argparse
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from process_tree import Usage, measure
from real_sizes import write_random
from skimage import data

ROOT = Path(__file__).parents[1]
GB = 1e9
FIRST_STEP = 60.0  # seconds, on two cores
PICTURES = {
    "astronaut": "a photo of a woman in an orange suit", "coffee": "a photo of a red cup on a wooden table",
    "chelsea": "a photo of a ginger cat", "rocket": "a photo of a white rocket at night",
}  # fmt: skip


@dataclass
class Stage:
    """A command, the most GB it may take, and whether they are of its largest process or of all."""

    command: list[str]
    bar: float | None = None
    per_process: bool = False


def write_pictures(folder: Path) -> None:
    """Three crops of each photograph that scikit-image brings along, with its caption beside it."""
    folder.mkdir()
    for name, caption in PICTURES.items():
        photo = Image.fromarray(getattr(data, name)())
        side = min(photo.size) * 3 // 4
        for i in range(3):
            x, y = ((length - side) * i // 2 for length in photo.size)
            photo.crop((x, y, x + side, y + side)).save(folder / f"{name}-{i}.png")
            (folder / f"{name}-{i}.txt").write_text(caption, encoding="utf-8")


def stages(folder: Path, steps: int, quick: bool) -> dict[str, Stage]:
    prepare = [sys.executable, "-m", "data_prep"]
    backbone = ["backbone=sd15", f"backbone.name={folder / 'sd15'}", "backbone.dtype=float32"]
    return {
        "ingest": Stage([*prepare, "ingest", "pictures", "--out", "photos"]),
        "caption": Stage([*prepare, "caption", "photos", "--out", "told"]),
        "pairs": Stage([*prepare, "pairs", "told", "--out", "train"]),
        "latents": Stage([
            *prepare, "latents", "train", "--backbone", str(folder / "sd15"), "--size", "128",
        ], 2.0, True),
        "train": Stage([
            sys.executable, str(ROOT / "train.py"), *backbone, f"encoder.vision={folder / 'vit-l-14'}",
            "data.shards=train", "data.size=128", "data.batch_size=2", "trainer=cpu", f"trainer.max_steps={steps}",
            "trainer.log_steps=1", "run_dir=run", "resume=false",
        ], 8.0),
        "infer": Stage([
            sys.executable, str(ROOT / "infer.py"), *backbone, "encoder=run/export", "shape=pictures/coffee-0.png",
            "appearance=pictures/chelsea-0.png", "num_images=1", "steps=2", "device=cpu", "out=infer",
            *(["size=64"] if quick else []),
        ], 6.0),
    }  # fmt: skip


def row(name: str, stage: Stage, usage: Usage) -> tuple[str, bool]:
    """A line of the table, and whether the stage did what it should."""
    memory = usage.largest if stage.per_process else usage.pss
    good = not usage.failed and (stage.bar is None or memory <= stage.bar * GB)
    bar = f"{stage.bar:.0f}" if stage.bar else ""
    verdict = f"failed, see {usage.log}" if usage.failed else ("" if stage.bar is None else "yes" if good else "NO")
    numbers = f"{usage.wall:.0f} | {usage.cpu:.0f} | {memory / GB:.2f} | {usage.rss / GB:.2f}"
    return f"| {name} | {numbers} | {bar} | {verdict} |", good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="paint at 64 px; the bar of 6 GB is for 512")
    parser.add_argument("--folder", type=Path, help="where everything goes and stays; without, a temporary folder")
    parser.add_argument("--only", help="stages, with commas; for a folder that has the others' results")
    parser.add_argument("--steps", type=int, default=3, help="of training")
    args = parser.parse_args()
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as temporary:
        folder = (args.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "sd15" / "model_index.json").is_file():  # the last file that is written
            write_random(folder)
        if not (folder / "pictures").exists():
            write_pictures(folder / "pictures")
        raise SystemExit(run(folder, args))


def run(folder: Path, args: argparse.Namespace) -> int:
    good, first = [], None
    print("| stage | wall s | CPU s | GB (PSS) | GB (RSS of the largest) | bar, GB | within |")
    print("|---|---:|---:|---:|---:|---:|---|")
    for name, stage in stages(folder, args.steps, args.quick).items():
        if args.only and name not in args.only.split(","):
            continue
        metrics = folder / "run" / "metrics.jsonl"
        if name == "train":
            shutil.rmtree(folder / "run", ignore_errors=True)  # of a run before, whose lines are no first step
        usage = measure(stage.command, folder / f"{name}.log", lambda m=metrics: m.is_file() and m.stat().st_size > 0)
        first = usage.first if name == "train" else first
        line, within = row(name, stage, usage)
        good.append(within)
        print(line, flush=True)
    if first:
        spent = f"{first[0]:.0f} s ({first[1]:.0f} CPU s)"
        print(f"first step done after {spent}; the bar on two free cores: {FIRST_STEP:.0f} s")
        good.append(first[0] <= FIRST_STEP)
    return int(not all(good))


if __name__ == "__main__":
    main()
