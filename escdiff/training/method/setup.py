"""What a customization is made of, from a configuration: `python train.py method=xti data.references=DIR`."""

import json
import time
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from escdiff.backbone import pick_dtype
from escdiff.data.pictures import to_pixels
from escdiff.methods import Method, make_method
from escdiff.pipelines.generate import generate
from escdiff.support.config.train import TrainConfig
from escdiff.support.errors import UserError
from escdiff.support.files import save_tensors
from escdiff.training.encoder.datasets import make_data, prepare
from escdiff.training.encoder.frozen import cast, make_backbone, picture_size
from escdiff.training.loop.hardware import own_device
from escdiff.training.loop.recipe import Training
from escdiff.training.method.module import MethodModule
from escdiff.training.method.references import Prior, ReferenceData, References, encode

PRIOR_STEPS, PRIOR_GUIDANCE = 25, 5.0
PRIOR_FILE = "prior.safetensors"  # in the run's folder: the moments of the class's pictures


def build(config: TrainConfig) -> Training:
    """The training for `escdiff.training.loop.run`.

    With `data.references` a concept is made of them; without, a method that encodes learns to from `data.source`.

    Raises:
        UserError: settings that no method takes, or references that are no pictures or too few.
    """
    if config.method is None:
        raise UserError("recipe=method given without a method; expected method=NAME, such as method=xti")
    backbone, device = make_backbone(config.backbone, whole=True), own_device(config.trainer)
    backbone.to(device)  # references are encoded and priors painted before Lightning moves anything
    method = make_method(config.method, backbone).to(backbone.device)
    if config.init and not method.encodes:
        what = f"init={config.init} given, but {type(method).__name__} learns nothing beforehand"
        raise UserError(f"{what}; leave it out")
    count, spent, max_steps = 0, 0.0, config.trainer.max_steps
    if config.data.references is None:
        prepare(config.data, method.learns)
        data = make_data(config.data, config.seed, backbone, device, shows=method.learns)
    else:
        size = picture_size(config.data.size, backbone)
        references = References.read(config.data.references, size, method.few, method.many, method.needs)
        started = time.perf_counter()
        load_learned(method, config.init)
        method.start(references.pixels, references.masks)
        prior = make_prior(method, config.seed, size, Path(config.run_dir).expanduser())
        data = ReferenceData(method, references, config.data.batch_size, config.seed, config.data.flip, prior)
        count, spent = len(references.names), time.perf_counter() - started
        max_steps = method.tuning_steps if method.encodes else max_steps
    cast(backbone, pick_dtype(config.backbone.dtype))
    module = MethodModule(
        method, method.rate(config.optim.lr, count), max_steps, config.optim.warmup, config.optim.weight_decay,
        config.loss.high_noise_bias, spent, config.data.references is not None,
        config.loss.anchor,
    )  # fmt: skip

    def finish(trained: MethodModule) -> None:
        trained.export(config.export_folder)
        method.release()  # the backbone is as it was

    return Training(module, data, finish, max_steps)


def load_learned(method: Method, init: str | None) -> None:
    """Read what a method that encodes has learned beforehand.

    Raises:
        UserError: it encodes, and no folder was given.
    """
    if init:
        method.load_pretrained(Path(init).expanduser())
    elif method.encodes:
        what = f"{type(method).__name__} needs an encoder that was trained before"
        raise UserError(f"{what}; give init=DIR, the export of a run without data.references")


def make_prior(method: Method, seed: int, size: int, run_dir: Path) -> Prior | None:
    """Pictures of the class by the backbone as it is: painted once for a run, then read from its folder.

    Args:
        size: pixels per side. run_dir: keeps their moments.
    """
    prompts = method.class_prompts()
    if not prompts:
        return None
    backbone, numbers = method.backbone, range(method.prior_count)
    texts, seeds = [prompts[i % len(prompts)] for i in numbers], [seed + i for i in numbers]
    made_of = {"backbone": backbone.name, "text_hash": backbone.text_hash, "texts": texts, "seeds": seeds, "size": size,
               "steps": PRIOR_STEPS, "guidance": PRIOR_GUIDANCE}  # fmt: skip
    file, key = run_dir / PRIOR_FILE, json.dumps(made_of)
    if (moments := _read_moments(file, key)) is None:
        pictures = generate(backbone, texts, steps=PRIOR_STEPS, guidance=PRIOR_GUIDANCE, seeds=seeds)
        moments = encode(backbone, torch.stack([to_pixels(picture, size) for picture in pictures]))
        file.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(file, {"moments": moments}, {"made_of": key})
    return Prior(texts, moments, method.prior_weight)


def _read_moments(file: Path, key: str) -> Tensor | None:
    """What an earlier start of the same run wrote; None where there is none, or of other settings."""
    try:
        with safe_open(file, framework="pt") as opened:
            return opened.get_tensor("moments") if (opened.metadata() or {}).get("made_of") == key else None
    except (OSError, SafetensorError):
        return None
