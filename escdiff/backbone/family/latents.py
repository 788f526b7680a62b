"""From a VAE's latents to what a family's model reads, and back: centre, scale, patches of 2 x 2 as tokens.

Legend: B batch, C latent channels, h, w latent height and width, N tokens of a picture (h w / 4 when packed).
"""

from dataclasses import dataclass

from torch import Tensor, nn

from escdiff.support.errors import UserError

SIDE = 2  # of a patch


@dataclass(frozen=True)
class Latents:
    """How a family's model reads latents.

    Attributes:
        packed: as tokens (B, N, 4C), each a patch of 2 x 2, channels outermost; otherwise as a picture (B, C, h, w).
    """

    packed: bool = False

    @property
    def step(self) -> int:
        """Latents of which a picture's sides are multiples."""
        return SIDE if self.packed else 1

    def normalize(self, vae: nn.Module, latents: Tensor) -> Tensor:
        """(B, C, h, w) of the VAE, centred and scaled for the model by what the VAE's configuration says."""
        mean, scale = _statistics(vae, latents)
        return (latents - mean) * scale

    def restore(self, vae: nn.Module, latents: Tensor) -> Tensor:
        """Inverse of `normalize`."""
        mean, scale = _statistics(vae, latents)
        return latents / scale + mean

    def pack(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) as the model takes it.

        Raises:
            UserError: an odd side where patches are needed.
        """
        if not self.packed:
            return latents
        if latents.shape[-2] % SIDE or latents.shape[-1] % SIDE:
            raise UserError(
                f"latents of {latents.shape[-2]} x {latents.shape[-1]} were given; expected even sides: "
                "resize the image"
            )
        patches = latents.unflatten(3, (-1, SIDE)).unflatten(2, (-1, SIDE))  # (B, C, h/2, 2, w/2, 2)
        return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def unpack(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Inverse of `pack` for latents of this height and width."""
        if not self.packed:
            return tokens
        patches = tokens.unflatten(1, (height // SIDE, width // SIDE)).unflatten(3, (-1, SIDE, SIDE))
        return patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def _statistics(vae: nn.Module, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
    config = vae.config
    if (mean := getattr(config, "latents_mean", None)) is not None:
        shape = (1, -1, *[1] * (like.ndim - 2))
        return like.new_tensor(mean).view(shape), 1 / like.new_tensor(config.latents_std).view(shape)
    return getattr(config, "shift_factor", None) or 0.0, config.scaling_factor
