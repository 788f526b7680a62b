"""What the encoder's training is made of, from a configuration."""

from escdiff.backbone import pick_dtype
from escdiff.backbone.frozen import Frozen
from escdiff.backbone.vae import drop_encoder
from escdiff.encoder.encoder import ConceptEncoder
from escdiff.encoder.vision import load_vision
from escdiff.support.config.encoder import EncoderConfig
from escdiff.support.config.train import SpaceConfig, TrainConfig
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
    """A new encoder for a backbone and a conditioning space, with the weights of the export `init` if one is given."""
    cells = backbone.space(space.layers, space.stages)
    encoder = ConceptEncoder.for_backbone(settings, load_vision(settings.vision), backbone, cells)
    if init:
        encoder.load_state_dict(ConceptEncoder.from_pretrained(init, backbone).state_dict())
    return encoder
