"""A few photographs in a shard, and a vision tower that reads them, for trainings of the encoder."""

from pathlib import Path

import numpy as np
from PIL import Image
from tiny import seeded
from transformers import CLIPVisionConfig, CLIPVisionModel

from escdiff.data.index import Index
from escdiff.data.shards import encode_jpeg, encode_json, encode_png, write_shard

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2,
         "image_size": 32, "patch_size": 8}  # fmt: skip


def write_photos(folder: Path) -> Path:
    """20 wide photographs with masks and captions."""
    rng, mask = np.random.default_rng(0), Image.new("L", (120, 80))
    mask.paste(255, (30, 20, 90, 60))
    rows = [
        {
            "__key__": f"{i:03d}",
            "jpg": encode_jpeg(Image.fromarray(rng.integers(0, 255, (80, 120, 3), np.uint8))),
            "mask.png": encode_png(mask),
            "json": encode_json({"caption": "a photo of a red mug on a table", "category": "mug"}),
        }
        for i in range(20)
    ]
    Index("photos", shards=[write_shard(folder / "photos-0.tar", rows)], planned=1).save(folder)
    return folder


@seeded
def save_tower(folder: Path) -> None:
    """A random vision tower of four layers."""
    CLIPVisionModel(CLIPVisionConfig(**TOWER)).save_pretrained(folder)
