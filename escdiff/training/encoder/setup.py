"""What the encoder's training is made of, from a configuration."""

from escdiff.backbone import pick_dtype
from escdiff.backbone.frozen import Frozen
from escdiff.backbone.vae import drop_encoder
from escdiff.encoder.checkpoint import read_config
from escdiff.encoder.encoder import ConceptEncoder
from escdiff.encoder.vision import load_vision
from escdiff.support.config.encoder import EncoderConfig
from escdiff.support.config.train import SpaceConfig, TrainConfig
from escdiff.support.errors import UserError
from escdiff.training.encoder.datasets import make_data, prepare, store_tokens
from escdiff.training.encoder.frozen import cast, make_backbone
from escdiff.training.encoder.module import EncoderModule
from escdiff.training.loop.hardware import own_device
from escdiff.training.loop.optim.choose import check_optimizer
from escdiff.training.loop.recipe import Training


def build(config: TrainConfig) -> Training:
    """The training for `escdiff.training.loop.run`; renders and encodes what is missing."""
    data, optim, device = config.data, config.optim, own_device(config.trainer)
    check_optimizer(optim.name)
    prepare(data)
    backbone = make_backbone(config.backbone)
    encoder = make_encoder(config.encoder, config.space, backbone, config.init)
    tokens = store_tokens(data, encoder, device)
    batches = make_data(data, config.seed, backbone, device, tokens, encoder.vision.image_size)
    cast(backbone, pick_dtype(config.backbone.dtype))
    encoder.vision.cast(backbone.dtype)  # like all that is frozen, once stored tokens are named after its own weights
    module = EncoderModule(
        encoder,
        backbone,
        config.loss,
        optim.lr,
        config.trainer.max_steps,
        optim.warmup,
        optim.weight_decay,
        optim.name,
    )
    preview = batches.preview()
    if "latent" in preview:  # and so in every batch
        drop_encoder(backbone.vae)
    module.set_preview(preview, config.backbone.guidance)
    return Training(module, batches, lambda trained: trained.export(config.export_folder))


def make_encoder(
    settings: EncoderConfig, space: SpaceConfig, backbone: Frozen, init: str | None = None
) -> ConceptEncoder:
    """A new encoder for a backbone and a conditioning space, with the weights of the export `init` if one is given.

    Its branches are not in the U-Net yet, see `EncoderModule`.

    Raises:
        UserError: `init` is no encoder for this backbone, or one of other sizes.
    """
    cells = backbone.space(space.layers, space.stages)
    encoder = ConceptEncoder.for_backbone(settings, load_vision(settings.vision), backbone, cells)
    if init:
        read_config(init, backbone)  # refuses what is not for it; with the backbone its U-Net would get the branches
        stored = ConceptEncoder.from_pretrained(init)
        for name, of in {"branch_rank": "rank ", "branched": ""}.items() if stored.branches else ():
            has, given = getattr(stored.config, name), getattr(settings, name)
            if has != given:
                what = f"init={init} has branches of {of}{has}, encoder.{name}={given} given"
                raise UserError(f"{what}; give encoder.{name}={has}")
        try:
            encoder.load_state_dict(stored.state_dict())
        except RuntimeError:
            what = f"init={init} has other sizes than the blocks encoder and space say"
            raise UserError(f"{what}; give the settings it was trained with") from None
        encoder.branches = stored.branches
    return encoder
