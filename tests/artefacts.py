"""One of everything that the project writes, and what a reader gets from it: run as a script, in a process of its own.

`python artefacts.py FOLDER` reads each artefact below FOLDER and prints name -> digest as JSON; where it may, as a user
who owns none of them.
"""

import hashlib
import json
import logging
import os
import sys
from pathlib import Path

import numpy as np
import tiny
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from huggingface_hub import ModelCard
from painting import make_concept
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModel

from escdiff import ConceptEncoder, ESCDiffPipeline
from escdiff.backbone.adapters.attached import ADAPTER, ImageAttention, LowRank, applied
from escdiff.backbone.branches import add_branches, branch_parameters
from escdiff.concept import ATTRIBUTES, Concept
from escdiff.data.index import Index
from escdiff.data.latent_cache import encode_dataset, load_latents
from escdiff.data.shards import read_shard
from escdiff.encoder import EncoderConfig
from escdiff.encoder.vision import load_vision
from escdiff.mini.data.arrays import StillLifeArrays
from escdiff.sharing.gallery import make_gallery
from escdiff.support.config.data import DataConfig
from escdiff.support.config.train import TrainConfig
from escdiff.support.config.trainer import OptimConfig, TrainerConfig
from escdiff.training.loop.checkpoint_files import damage, saved

NOBODY = 65534
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8))
PROMPT = "a photo of a <appearance> <shape>"
KINDS = {"encoder": {}, "encoder_lora": {"branch_rank": 2}, "encoder_routed": {"branch_rank": 2, "branches": "routed"}}


def digest(values) -> str:
    """Of tensors, arrays and plain values in dicts and lists."""
    if isinstance(values, torch.Tensor):
        return digest(values.detach().float().numpy())
    if isinstance(values, np.ndarray):
        return hashlib.sha256(repr(values.shape).encode() + np.ascontiguousarray(values).tobytes()).hexdigest()[:16]
    if isinstance(values, dict):
        return digest([[key, digest(values[key])] for key in sorted(values)])
    if isinstance(values, list | tuple):
        return digest(" ".join(digest(value) for value in values))
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


def make_encoder(root: Path, backbone, **options) -> tuple[ConceptEncoder, torch.nn.Module]:
    """An encoder as it is after training, and the U-Net that its branches were trained in; not on disk yet."""
    tower = root / "tower"
    if not tower.is_dir():
        torch.manual_seed(5)
        config = CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
                                  image_size=32, patch_size=16)  # fmt: skip
        CLIPVisionModel(config).save_pretrained(tower)
        for file in tower.iterdir():
            file.chmod(0o644)  # the tower is the user's own
    settings = EncoderConfig(
        vision=str(tower), shape_depths=(1, 2), appearance_depths=(0, 1), features=16, rank=2, **options
    )
    torch.manual_seed(6)
    encoder = ConceptEncoder.for_backbone(settings, load_vision(str(tower)), backbone, backbone.p_plus()).eval()
    encoder.load_state_dict({key: value.half().float() for key, value in encoder.state_dict().items()})
    unet = tiny.make_unet().requires_grad_(False)
    if names := settings.branch_names:
        add_branches(unet, settings.branch_rank, names, settings.branches == "routed")
        with torch.no_grad():
            for name in names:
                for parameter in branch_parameters(unet, name):
                    parameter.normal_()
    return encoder, unet


def of_encoder(encoder: ConceptEncoder, branches: dict | None) -> str:
    concept = encoder.encode(PICTURE)
    return digest([concept.vectors, concept.gates, branches or {}])


def of_concept(concept: Concept) -> str:
    parts = [concept.vectors, concept.anchors, concept.gates, concept.extras, concept.notes, concept.branches]
    return digest([*parts, concept.space.to_metadata(), concept.base_model, concept.text_hash, concept.license])


def of_pipeline(pipeline, **options) -> str:
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    out = pipeline(num_inference_steps=1, guidance_scale=2.0, output_type="latent", generator=generator, **options)
    return digest(out.images)


def of_unet(unet) -> str:
    added = {}
    if unet.encoder_hid_proj is not None:
        added["added_cond_kwargs"] = {"image_embeds": [torch.ones(1, 1, 24)]}
    with torch.no_grad():
        return digest(unet(torch.ones(1, 8, 16, 16), 5, torch.ones(1, 77, 32), **added).sample)


def of_stock(folder: Path) -> str:
    unet, info = UNet2DConditionModel.from_pretrained(folder / "unet", output_loading_info=True, use_safetensors=True)
    problems = [info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")]
    return digest([unet.state_dict(), *(list(problem) for problem in problems)])


def of_gallery(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    with Image.open(folder / "mug.png") as preview:
        size = preview.size
    card = ModelCard.load(folder / "README.md").data.to_dict()
    return digest([names, size, card["library_name"], of_concept(Concept.load(folder / "mug.safetensors"))])


def of_shards(folder: Path) -> str:
    index = Index.load(folder)
    index.check(folder, hashes=True)
    samples = [sample for shard in index.shards for sample in read_shard(folder / shard.name)]
    return digest([[sample["__key__"], np.asarray(sample["png"])] for sample in samples])


def of_run(folder: Path) -> str:
    files = saved(folder / "checkpoints")
    states = [torch.load(path, weights_only=True)["state_dict"] for path in files if damage(path) is None]
    rows = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return digest([states, len(rows), sorted(manifest), (folder / "config.yaml").read_text(encoding="utf-8")])


def read_encoder(folder: Path) -> str:
    encoder = ConceptEncoder.from_pretrained(folder)
    return of_encoder(encoder, encoder.branches and encoder.branches.states)


def read_adapted(folder: Path) -> str:
    backbone, concept = tiny.make_backbone(), Concept.load(folder / "concept.safetensors")
    with applied(backbone, [concept], [folder]):
        return digest([of_concept(concept), of_unet(backbone.unet)])


READERS = {
    "pipeline": lambda folder: of_pipeline(ESCDiffPipeline.from_pretrained(folder), prompt=PROMPT, shape=PICTURE,
                                           appearance=PICTURE),
    "stock": lambda folder: of_pipeline(StableDiffusionPipeline.from_pretrained(folder), prompt="a cat"),
    "weights": of_stock,
    **dict.fromkeys(KINDS, read_encoder),
    "concept": lambda folder: of_concept(Concept.load(folder / "mug.safetensors")),
    "concept_lora": read_adapted,
    "concept_image": read_adapted,
    "gallery": of_gallery,
    "shards": of_shards,
    "latents": lambda folder: digest(load_latents(folder, "k")),
    "arrays": lambda folder: digest(StillLifeArrays(folder).pixels(slice(None))),
    "run": of_run,
}  # fmt: skip
SHARED = {"stock": "pipeline", "weights": "pipeline", "latents": "shards", "arrays": "shards"}  # artefact -> folder


def write_all(root: Path) -> dict[str, str]:
    """Write one of each below `root`; gives what was written, name -> digest."""
    from escdiff.mini.data.still_life import StillLifeOptions, make_still_life

    backbone, made = tiny.make_backbone(name="someone/tiny"), {}
    for name, options in KINDS.items():
        encoder, unet = make_encoder(root, backbone, **options)
        encoder.save_pretrained(root / name, unet)
        states = {}
        if options:
            for attribute in ATTRIBUTES:
                unet.save_lora_adapter(root / "theirs", adapter_name=attribute, weight_name="x.safetensors")
                from safetensors.torch import load_file

                states[attribute] = load_file(root / "theirs" / "x.safetensors")
        made[name] = of_encoder(encoder, states)

    stock = backbone.pipeline()
    made["stock"] = of_pipeline(stock, prompt="a cat")
    made["weights"] = digest([stock.unet.state_dict(), [], [], []])
    pipeline = ESCDiffPipeline(**stock.components, requires_safety_checker=False)
    pipeline.set_encoder(root / "encoder_lora")
    made["pipeline"] = of_pipeline(pipeline, prompt=PROMPT, shape=PICTURE, appearance=PICTURE)
    pipeline.save_pretrained(root / "pipeline")

    concept = make_concept(backbone)
    concept.notes, concept.license = {"method": "xti", "größe": "ß"}, "CC0-1.0"
    (root / "concept").mkdir()
    concept.save(root / "concept" / "mug.safetensors")
    made["concept"] = of_concept(concept)

    for name, kind in (("concept_lora", LowRank), ("concept_image", ImageAttention)):
        other = tiny.make_backbone(name="someone/tiny")
        torch.manual_seed(7)
        projection = {"proj.weight": torch.randn(128, 24) * 0.1, "proj.bias": torch.zeros(128)}
        projection |= {"norm.weight": torch.ones(32), "norm.bias": torch.zeros(32)}
        weights = kind(other, 2 if kind is LowRank else projection)
        concept = make_concept(other)
        with torch.no_grad():
            for parameter in weights.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        concept.notes = {"adapter": ADAPTER, "image_scale": "1.0"}
        concept.save(root / name / "concept.safetensors")
        weights.save(root / name / ADAPTER)
        made[name] = digest([of_concept(concept), of_unet(other.unet)])

    files = [root / "concept" / "mug.safetensors"]
    make_gallery(files, tiny.make_backbone(), root / "gallery", scenes=("a {}",), steps=1)
    names = ["README.md", "gallery.png", "mug.png", "mug.safetensors"]
    size = Image.open(root / "gallery" / "mug.png").size
    assert min(size) >= 128
    made["gallery"] = digest([names, size, "escdiff", made["concept"]])

    folder = root / "shards"
    make_still_life(folder, 32, StillLifeOptions(seed=5, size=32, shard_size=16))
    made["shards"] = of_shards(folder)
    pixels = torch.stack([torch.from_numpy(np.asarray(sample["png"]).copy()) for shard in Index.load(folder).shards
                          for sample in read_shard(folder / shard.name)])  # fmt: skip
    made["arrays"] = digest(pixels.permute(0, 3, 1, 2).float().div(127.5).sub(1))
    encode_dataset(folder, lambda pixels: pixels[:, :, ::8, ::8], "k")
    made["latents"] = digest(pixels[:, ::8, ::8].permute(0, 3, 1, 2).float().div(127.5).sub(1).half())
    made["run"] = write_run(root / "run")
    return made


def write_run(folder: Path) -> str:
    from toy_training import FINISHED

    from escdiff.training.loop import run
    from escdiff.training.loop.recipe import RECIPES

    RECIPES["toy"] = "toy_training:build"
    trainer = TrainerConfig(
        max_steps=4, accelerator="cpu", devices=1, log_steps=2, save_steps=4, val_steps=0, sample_steps=0
    )
    config = TrainConfig(
        recipe="toy", seed=3, run_dir=str(folder), data=DataConfig(batch_size=3), optim=OptimConfig(ema=0.0),
        trainer=trainer,
    )  # fmt: skip
    config.break_from = 99  # the toy's
    run.train(config)
    state = FINISHED.pop().state_dict()
    rows = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return digest([[state], len(rows), sorted(manifest), (folder / "config.yaml").read_text(encoding="utf-8")])


def main(root: Path) -> None:
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    found = {name: reader(root / SHARED.get(name, name)) for name, reader in READERS.items()}
    files = [path for path in root.rglob("*") if path.is_file() and path.parent.name != "theirs"]
    if os.getuid() == 0:  # only the files are opened as another user, who may not see this one's Python
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    opened = sum(bool(path.open("rb").read(1)) for path in files)
    print(json.dumps({"user": os.getuid(), "opened": opened, "found": found}), flush=True)
    os._exit(0)  # without the cleaning up of libraries, whose folders belong to the user of before


if __name__ == "__main__":
    main(Path(sys.argv[1]))
