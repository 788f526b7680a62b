"""A small dataset of pictures with masks, captions and duplicates, made once."""

import json
from pathlib import Path

import pytest
from PIL import Image
from trouble import encoded, noise

from data_prep.dataset import Run
from data_prep.ingest import Ingest, ingest
from data_prep.plans import make_plan
from escdiff.data.index import Index
from escdiff.data.shards import read_shard
from escdiff.support.jobs.engine import Engine

HERE = Run(Engine(workers=1), max_bad=1.0)


@pytest.fixture(scope="session")
def here() -> Run:
    """In this process, whatever is bad."""
    return HERE


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """10 distinct pictures in shards of 4: even ones have a mask, the first a caption; 4 of them occur twice."""
    root = tmp_path_factory.mktemp("photos")
    for i in range(10):
        picture = noise(80, 64, seed=i)
        (root / f"{i}.png").write_bytes(encoded(picture, "PNG"))
        if i < 4:
            (root / f"{i}-again.jpg").write_bytes(encoded(picture.resize((60, 48)), "JPEG", quality=80))
        if i % 2 == 0:
            mask = Image.new("L", picture.size, 0)
            mask.paste(255, (20, 15, 60, 50))
            (root / f"{i}.mask.png").write_bytes(encoded(mask, "PNG"))
    (root / "0.txt").write_text("a photo of a shiny red mug", encoding="utf-8")
    ingest(make_plan(root, 4), root / "set", Ingest(), HERE)
    return root / "set"


@pytest.fixture(scope="session")
def samples_of():
    """samples_of(folder) -> all decoded samples."""
    return lambda folder: [s for shard in Index.load(folder).shards for s in read_shard(folder / shard.name)]


@pytest.fixture(scope="session")
def rejects_of():
    """rejects_of(folder) -> all lines in quarantine."""

    def read(folder: Path) -> list[dict]:
        files = sorted((folder / "quarantine").glob("*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]

    return read


@pytest.fixture(scope="session")
def contents_of():
    """contents_of(folder) -> name to bytes of all files below it."""
    return lambda folder: {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory) -> str:
    """A folder with a random CLIP of two layers."""
    import torch
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    torch.manual_seed(0)
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 8}  # fmt: skip
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessor(size=size, crop_size=size).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_captioner(tmp_path_factory) -> str:
    """A folder with a random BLIP of one layer; it says something, and always the same."""
    import torch
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    folder = tmp_path_factory.mktemp("blip")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *(f"w{i}" for i in range(26))]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"))
    text = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "encoder_hidden_size": 16, "bos_token_id": 5, "eos_token_id": 3,
            "sep_token_id": 3, "pad_token_id": 0}  # fmt: skip
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 32, "patch_size": 16}  # fmt: skip
    torch.manual_seed(0)
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=16)
    BlipForConditionalGeneration(config).save_pretrained(folder)
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_segmenter(tmp_path_factory) -> str:
    """A folder with a random Segformer; "w0" to "w2" are its labels."""
    import torch
    from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

    torch.manual_seed(1)
    config = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[7, 3], strides=[4, 2],
        num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16, id2label={i: f"w{i}" for i in range(3)},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("segformer")
    SegformerForSemanticSegmentation(config).save_pretrained(folder)
    SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)
