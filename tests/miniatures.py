"""The field's benchmarks in miniature: their layouts, with generated pictures."""

import csv
import gzip
import json
from pathlib import Path

import numpy as np
from PIL import Image

TEXT = """Classes

subject_name,class
mug_1,mug
dog_1,dog

Prompts

Object Prompts

prompt_list = [
'a {0} {1} in the jungle'.format(unique_token, class_token),
'a red {0} {1}'.format(unique_token, class_token)
]

Live Subject Prompts

prompt_list = [
'a {0} {1} wearing a red hat'.format(unique_token, class_token),
'a wet {0} {1}'.format(unique_token, class_token)
]
"""
SUBJECTS = {
    "live_subject/animal/00": ("ginger cat", "A cat in the snow", "an oil painting of a ginger cat"),
    "object/01": ("Mug", "a mug on a beach", "a red mug"),
    "style/02": ("ink painting style", "a horse, ink painting style", "a castle"),
}


def write_dreambench(root: Path) -> None:
    """DreamBooth's data set: a mug and a dog, three pictures each."""
    rng = np.random.default_rng(0)
    for name in ("mug_1", "dog_1"):
        (root / "dataset" / name).mkdir(parents=True)
        color = rng.integers(0, 200, 3)
        for i in range(3):
            pixels = np.full((48, 60, 3), 230, np.uint8)
            pixels[10 + i : 40, 15 + 2 * i : 45] = color + rng.integers(0, 40, (30 - i, 30 - 2 * i, 3))
            Image.fromarray(pixels).save(root / "dataset" / name / f"{i:02d}.jpg")
    (root / "dataset" / "prompts_and_classes.txt").write_text(TEXT, encoding="utf-8")


def write_dreambench_plus(root: Path) -> None:
    """DreamBench++'s `data/`: `SUBJECTS`, one plain picture each."""
    for i, (name, lines) in enumerate(SUBJECTS.items()):
        picture, captions = root / "images" / f"{name}.jpg", root / "captions" / f"{name}.txt"
        picture.parent.mkdir(parents=True, exist_ok=True)
        captions.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60, 48), (80 * i, 40, 200 - 80 * i)).save(picture)
        captions.write_text("\n".join(lines), encoding="utf-8")


def write_abo(root: Path, products: int = 6, views: int = 2) -> None:
    """Amazon Berkeley Objects: products before white, and a picture that two of them share."""
    rng, rows, listings = np.random.default_rng(1), [], []
    for product in range(products):
        names = [f"p{product}v{view}" for view in range(views)]
        for view, name in enumerate(names):
            pixels = np.full((300, 280 + 40 * (product % 3), 3), 250, np.uint8)
            noise = rng.integers(0, 255, (20, 20, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            pixels[40 + 20 * view : 200 + 20 * view, 60:220] = noise
            path = root / "images" / "original" / name[:2] / f"{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
            rows.append((name, *pixels.shape[:2], f"{name[:2]}/{name}.jpg"))
        kind = [{"value": "OFFICE_CHAIR" if product else "BOOK"}]
        more = {"other_image_id": [*names[1:], "shared"]} if product < 3 else {"other_image_id": names[1:]}
        listings.append({"item_id": f"B{product}", "product_type": kind, "main_image_id": names[0], **more})
    rows += [("shared", 300, 300, "p0/p0v0.jpg"), ("tiny", 20, 20, "p0/p0v0.jpg")]
    for folder, name, write in (
        (
            "images/metadata",
            "images.csv.gz",
            lambda file: csv.writer(file).writerows([("image_id", "height", "width", "path"), *rows]),
        ),
        ("listings/metadata", "listings_0.json.gz", lambda file: file.write("\n".join(map(json.dumps, listings)))),
    ):
        (root / folder).mkdir(parents=True)
        with gzip.open(root / folder / name, "wt", encoding="utf-8", newline="") as file:
            write(file)
