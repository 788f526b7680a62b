"""What large text encoders make of ordinary words, on disk: each text is encoded once for all trainings."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from escdiff.backbone.family.blocks import TEXT
from escdiff.backbone.family.reading import MASK
from escdiff.support.files import save_tensors

LENGTH = "length"


class TextCache:
    """A folder with a file for every text.

    Padding is not stored: behind a mask it has no weight at all, so it comes back as zeros.

    Args:
        folder: shared by any models.
        about: tells text encoders, their type and their settings apart.
    """

    def __init__(self, folder: str | Path, about: str) -> None:
        self.folder = Path(folder).expanduser() / hashlib.sha256(about.encode()).hexdigest()[:16]

    def get(self, text: str) -> dict[str, Tensor] | None:
        """Arguments of the model (1, ...) each, or None for a text that is not there."""
        try:
            found = load_file(self._file(text))
        except (OSError, SafetensorError):  # another process may be writing it
            return None
        if LENGTH in found:
            beyond = int(found.pop(LENGTH)) - found[TEXT].shape[1]
            found[TEXT], found[MASK] = F.pad(found[TEXT], (0, 0, 0, beyond)), F.pad(found[MASK], (0, beyond))
        return found

    def put(self, text: str, found: Mapping[str, Tensor]) -> None:
        """Keep what `get` gives."""
        stored = dict(found)
        mask = stored.get(MASK)
        if mask is not None and mask[0, : (real := int(mask.sum()))].all():
            length = mask.new_tensor(mask.shape[1])
            stored |= {TEXT: stored[TEXT][:, :real], MASK: mask[:, :real], LENGTH: length}
        self.folder.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # another process wrote it meanwhile
            save_tensors(self._file(text), stored, {"text": text})

    def _file(self, text: str) -> Path:
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"
