"""Data of the encoder's training, by the name in the dataset's index.

A new kind of dataset is an entry of `DATASETS`, or an entry point `escdiff.datasets` of an installed package: its class
reads the configuration and serves the batches.
"""

from importlib import import_module
from typing import Any, Protocol

from escdiff.backbone import Backbone
from escdiff.data.index import FILE
from escdiff.data.pictures import expand
from escdiff.data.shard_store import ShardStore, is_address
from escdiff.encoder.encoder import ConceptEncoder
from escdiff.support import extensions
from escdiff.support.config.data import DataConfig

DATASETS = {
    "still_life": "escdiff.mini.data.swap_data:SwapData",
    "photos": "escdiff.training.encoder.photos:PhotoData",
    "still_life.scenes": "escdiff.mini.data.subjects:SceneSubjects",
    "still_life.faces": "escdiff.mini.data.subjects:FaceSubjects",
}
RENDERED, OTHERS = "still_life", "photos"  # what is made where nothing is; how datasets of any other name are read


class EncoderData(Protocol):
    """A `LightningDataModule` of batches as `escdiff.mini.data.swaps.EncoderDataModule` describes them."""

    @classmethod
    def of_config(
        cls, data: DataConfig, seed: int, backbone: Backbone, device: str, tokens: str | None,
        reference_size: int | None,
    ) -> "EncoderData":  # fmt: skip
        """Data of `data.source`, with latents of the backbone where `data.latents` asks for them.

        Args:
            seed: of the order and of what is drawn. device: where pictures are encoded.
            tokens: key of the stored tokens, see `store_tokens`. reference_size: pixels, side of what the tower reads.
        """

    @staticmethod
    def store_tokens(data: DataConfig, encoder: ConceptEncoder, device: str) -> str:
        """Keep what the encoder reads of its vision tower beside the data; returns the key of that cache."""

    def preview(self) -> dict[str, Any]:
        """A batch for the sample grid."""


def find(name: str) -> type[EncoderData]:
    """The class for datasets whose index has this name."""
    if name not in DATASETS and (added := extensions.load(extensions.DATASETS, name)) is not None:
        return added
    module, kind = DATASETS.get(name, DATASETS[OTHERS]).split(":")
    return getattr(import_module(module), kind)


def prepare(data: DataConfig, shows: str = "") -> None:
    """Render `RENDERED` into the folder `data.source` where no finished dataset is.

    Args:
        shows: what of it is wanted, "scenes" or "faces" with a reference of each thing; see `Method.learns`.

    Raises:
        UserError: the folder holds something else, or the disk is too full.
    """
    if not is_address(data.source):  # nothing is ever made there
        find(_part(RENDERED, shows)).prepare(data)


def make_data(
    data: DataConfig, seed: int, backbone: Backbone, device: str = "cpu", tokens: str | None = None,
    reference_size: int | None = None, shows: str = "",
) -> EncoderData:  # fmt: skip
    """The data of `data.source`, by the name in its index; arguments as of `EncoderData.of_config` and `prepare`."""
    return _kind(data, shows).of_config(data, seed, backbone, device, tokens, reference_size)


def store_tokens(data: DataConfig, encoder: ConceptEncoder, device: str) -> str | None:
    """The key of a cache of what the encoder reads of its tower, made where it is missing; None without `data.tokens`.

    Raises:
        UserError: photographs, whose references are not known beforehand.
    """
    return _kind(data).store_tokens(data, encoder, device) if data.tokens == "auto" else None


def _kind(data: DataConfig, shows: str = "") -> type[EncoderData]:
    made = shows and not is_address(data.source) and not (expand(data.source) / FILE).is_file()
    return find(_part(RENDERED if made else ShardStore(data.source).index().name, shows))


def _part(name: str, shows: str) -> str:
    part = f"{name}.{shows}"
    return part if part in DATASETS else name  # other data have one object, which is its own reference
