"""What a method changes in the U-Net."""

from pathlib import Path

from torch import nn


class Weights:
    """Trainable weights of a backbone's U-Net, inside it until `remove`."""

    def remove(self) -> None:
        """Take them out; the U-Net is as it was before. Save first."""
        raise NotImplementedError

    def parameters(self) -> list[nn.Parameter]:
        """What is trained, in float32."""
        raise NotImplementedError

    def save(self, folder: Path) -> None:
        """Write it into the adapter's folder, as diffusers' own loader reads it where there is one."""
        raise NotImplementedError
