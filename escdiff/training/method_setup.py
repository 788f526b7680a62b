"""What a customization is made of, from a configuration: `python train.py method=xti data.references=DIR`."""

import time
from pathlib import Path
from typing import Any

import torch

from escdiff.backbone import Backbone
from escdiff.data.images import to_pixels
from escdiff.errors import UserError
from escdiff.methods import Method, make_method
from escdiff.pipeline import generate
from escdiff.training.encoder_setup import cast, make_backbone, make_data
from escdiff.training.method_module import MethodModule
from escdiff.training.options import export_folder, option, own_device, to_plain
from escdiff.training.references import Prior, ReferenceData, References, encode

PRIOR_STEPS, PRIOR_GUIDANCE, PRIOR_WEIGHT, PRIOR_COUNT = 25, 5.0, 1.0, 16


def build(config: Any):
    """Module, data and finish for `escdiff.training.run`.

    With `data.references` a concept is made of them; without, a method that encodes learns to from `data.root`.

    Raises:
        UserError: settings that no method takes, or references that are no pictures or too few.
    """
    settings, source = option(config, "method"), option(config, "data.references")
    if settings is None:
        raise UserError("recipe=method given without a method; expected method=NAME, such as method=xti")
    backbone = make_backbone(config)
    backbone.to(own_device(config))  # references are encoded and priors painted before Lightning moves anything
    method = make_method(to_plain(settings), backbone).to(backbone.device)
    if (init := option(config, "init")) and not method.encodes:
        raise UserError(f"init={init} given, but {type(method).__name__} learns nothing beforehand; leave it out")
    if source is None:
        data, spent = make_learning(config, method), 0.0
    else:
        references = References.read(source, picture_size(backbone), method.few, method.many)
        started = time.perf_counter()
        data = make_references(config, method, references)
        spent = time.perf_counter() - started
        if method.encodes:
            config.trainer.max_steps = method.tuning_steps
    count = 0 if source is None else len(references.names)
    lr = method.rate(config.optim.lr, count)
    module = MethodModule(
        method, lr, config.trainer.max_steps, option(config, "optim.warmup", 0),
        option(config, "optim.weight_decay", 0.0), option(config, "loss.high_noise_bias", 0.0),
        spent, source is not None,
    )  # fmt: skip
    return module, data, lambda trained: trained.export(export_folder(config))


def make_references(config: Any, method: Method, references: References) -> ReferenceData:
    """The method looks at the references; the backbone paints the prior where there is one."""
    if init := option(config, "init"):
        method.load_pretrained(Path(init).expanduser())
    elif method.encodes:
        what = f"{type(method).__name__} needs an encoder that was trained before"
        raise UserError(f"{what}; give init=DIR, the export of a run without data.references")
    prior = make_prior(config, method)
    data = ReferenceData(
        method, references, config.data.batch_size, config.seed, option(config, "data.flip", True), prior
    )
    method.start(references.pixels, references.masks)
    _cast(config, method)
    return data


def make_prior(config: Any, method: Method) -> Prior | None:
    """Paint pictures of the class with the backbone as it is; equal for equal seeds, so resuming needs no file."""
    prompts = method.class_prompts()
    if not prompts:
        return None
    backbone, count = method.backbone, option(config, "method.prior_count", PRIOR_COUNT)
    texts = [prompts[i % len(prompts)] for i in range(count)]
    pictures = generate(
        backbone, texts, steps=PRIOR_STEPS, guidance=PRIOR_GUIDANCE, seeds=[config.seed + i for i in range(count)]
    )
    moments = encode(backbone, torch.stack([to_pixels(p, picture_size(backbone)) for p in pictures]))
    return Prior(texts, moments, option(config, "method.prior_weight", PRIOR_WEIGHT))


def make_learning(config: Any, method: Method):
    """The data set of the concept encoder, as targets that are their own references."""
    data = make_data(config, method.backbone)
    _cast(config, method)
    return data


def picture_size(backbone: Backbone) -> int:
    """Pixels per side that the U-Net was made for."""
    return backbone.unet.config.sample_size * 2 ** (len(backbone.vae.config.block_out_channels) - 1)


def _cast(config: Any, method: Method) -> None:
    """The frozen weights to `backbone.dtype`; what is trained of the U-Net stays in float32."""
    cast(config, method.backbone)
    for parameter in method.kept:
        parameter.data = parameter.data.float()
