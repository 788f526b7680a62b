"""The block `data`: what a training reads."""

from dataclasses import dataclass

from escdiff.support.config.keys import key


@dataclass
class DataConfig:
    """Rendered Still Life, photographs in shards, or the references of one concept."""

    still_life: str = key("${oc.env:ESCDIFF_HOME,outputs}/still_life", "folder of rendered pictures")
    root: str = key("${.still_life}", "data set; Still Life is rendered on the first run if nothing is there",
                    verbatim=True)  # fmt: skip
    shards: str | None = key(None, "your own webdataset shards instead: a folder, or an address such as "
                             "s3://bucket/photos", verbatim=True)  # fmt: skip
    cache: str = key("~/.cache/escdiff/shards", "folder for shards fetched from an address")
    cache_gb: float = key(0.0, "size of that folder, above which the shards used least recently go; 0: no limit", low=0)
    references: str | None = key(None, "a picture, or a folder of one concept's pictures (method)", verbatim=True)
    flip: bool = key(True, "mirror references at random (method)")
    num_samples: int = key(20000, "pictures to render", low=1)
    shard_size: int = key(512, "rendered pictures per shard", low=1)
    seed: int = key(1, "of the rendered world", low=0)
    size: int | None = key(128, "pixels; null: what the backbone was made for", low=8)
    edits: float = key(0.0, "share of what is rendered that is pairs before and after an edit (instruct_pix2pix)",
                       low=0, high=1)  # fmt: skip
    split: str = key("train", "train: without the combinations kept for tests; test: any combination",
                     choices=("train", "test"))  # fmt: skip
    render_workers: int = key(0, "rendering processes; 0 means one per core", low=0)
    batch_size: int = key(32, "samples per process and step", low=1)
    num_workers: int | str = key("auto", "processes that read per GPU; auto: cores / GPUs - 1, none where the CPU "
                                 "trains", low=0, choices=("auto",))  # fmt: skip
    latents: str | None = key("auto", "the VAE's moments beside the shards; null encodes at every step",
                              choices=("auto",))  # fmt: skip
    tokens: str | None = key(None, "auto: what the encoder reads of its vision tower, too, for two views of every "
                             "picture (encoder)", choices=("auto",))  # fmt: skip
    one_reference: float = key(0.1, "share of samples whose only reference is the target (photos: the object), framed "
                               "anew", low=0, high=1)  # fmt: skip
    shape_only: float = key(0.15, "share of prompts that say the material in words", low=0, high=1)
    appearance_only: float = key(0.15, "share of prompts that say the family in words", low=0, high=1)
    drop_caption: float = key(0.1, "share of prompts without their caption's scene (photos)", low=0, high=1)
    buckets: bool = key(False, "batches of one aspect ratio each instead of centre squares, without cached latents "
                        "(photos)")  # fmt: skip
    reframed: float = key(0.5, "share of references that are mirrored, zoomed, tilted and shifted (encoder)",
                          low=0, high=1)  # fmt: skip
    namesakes: bool = key(False, "batches hold pairs of one family or one pattern, for loss.instances (encoder)")
    val_fraction: float = key(0.02, "share of the samples that are held out", low=0, high=1)
    buffer: int = key(500, "samples in the shuffle buffer of streamed shards", low=1)
    check_hashes: bool = key(False, "compare every shard with its SHA-256 before training")
    plain_share: float = key(0.0, "share of the run whose pictures are plain or gradient only (unet)", low=0, high=1)

    @property
    def source(self) -> str:
        """The data set that is read: your own shards, else `root`."""
        return self.shards or self.root
