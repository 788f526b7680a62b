"""The block `backbone`: which diffusion model, and how its weights are found and read."""

from dataclasses import dataclass

from escdiff.support.config.keys import key

DTYPE_NAMES = ("float32", "bfloat16", "float16")


@dataclass
class BackboneConfig:
    """The frozen model."""

    name: str = key("mini", "mini (the bundled model), a diffusers folder or single file, or a hub id", verbatim=True)
    dtype: str = key("float32", "of the frozen weights; bfloat16 is slow on a CPU", choices=DTYPE_NAMES)
    guidance: float = key(3.0, "classifier-free guidance scale of pictures", low=0)
    trust_pickle: bool = key(False, "read pickled weights, which can run code")
    variant: str | None = key(None, "of the files, such as fp16")
    revision: str | None = key(None, "branch, tag or commit on the hub")
    offline: bool = key(False, "read only what is on this machine")
    config: str | None = key(None, "diffusers folder or hub id that describes a single file; null: SD 1.5, 2.1 or XL "
                             "by its weights", verbatim=True)  # fmt: skip
    prediction_type: str | None = key(None, "where the checkpoint names the wrong one",
                                      choices=("epsilon", "v_prediction", "sample"))  # fmt: skip
    device_map: str | None = key(None, "balanced, cuda, ...: diffusers' placing over devices, instead of device=")
    gradient_checkpointing: bool = key(False, "less memory in training, about 0.7 times the speed")
    channels_last: bool = key(False, "memory layout of the U-Net's convolutions, for training on GPUs")
    offload_text: bool = key(False, "a transformer's text encoders stay on the CPU; a text is encoded once")
    text_cache: str | None = key(None, "folder in which what a transformer's text encoders read is kept for other "
                                 "trainings", verbatim=True)  # fmt: skip
    quantize: str | None = key(None, "a transformer's weights in fewer bits, for one GPU; needs bitsandbytes",
                               choices=("8bit", "4bit"))  # fmt: skip
    splice_words: bool = key(False, "learn words inside the text encoder, of PixArt and Sana; it runs once per layer")
    compile: bool = key(False, "the U-Net's repeated parts, for training on GPUs; its first steps take minutes")
