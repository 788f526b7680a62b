"""Attribute transfer on a real picture: its layout stays, one object takes an attribute of a reference.

What ESCDiff adds to editing: the reference's appearance, or shape, is a concept that the encoder reads in one forward
pass, so nothing is trained. Appearance goes onto the object in its layout (Plug-and-Play) and inside of its mask; a new
shape has another outline, so it is painted inside of the mask without the old layout.
"""

from torch import Tensor

from escdiff.concept import ATTRIBUTES
from escdiff.control.base import Control
from escdiff.control.inversion import Trajectory
from escdiff.control.keep import Keep
from escdiff.control.plug_and_play import PlugAndPlay
from escdiff.support.errors import UserError


def transfer(
    source: Trajectory, attribute: str, mask: Tensor | None = None, attention: float = 0.5, features: float = 0.8,
    factor: int | None = None,
) -> tuple[Control, ...]:  # fmt: skip
    """Controls for painting "a photo of a <appearance> mug ..." or "a red <shape> ..." over a source picture.

    Args:
        attribute: "appearance" or "shape", what the reference gives.
        mask: (1, H, W), 1 where the picture may change; a new shape needs one, with room for it.
        attention, features, factor: see `PlugAndPlay`, for the appearance.

    Raises:
        UserError: another attribute, or a shape without a mask.
    """
    if attribute not in ATTRIBUTES:
        raise UserError(f"attribute={attribute!r} was given; expected one of {', '.join(ATTRIBUTES)}")
    if attribute == "shape" and mask is None:
        raise UserError("a new shape was asked for without a mask; give one that has room for it")
    layout = [PlugAndPlay(source, attention, features, factor)] if attribute == "appearance" else []
    return (*layout, *([Keep(source, mask)] if mask is not None else []))
