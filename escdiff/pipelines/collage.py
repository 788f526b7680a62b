"""What AnyDoor's branch reads: a scene, and in a box the fine details of an object (Chen et al. 2024, "AnyDoor").

Legend: B batch, H, W height and width of the scene, H', W' of the reference.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from escdiff.control.boxes import Box, draw
from escdiff.support.errors import UserError

CHANNELS = 4  # the scene's three and the box
FAINT = 50 / 255  # edges below are left out, as theirs
RIM = 3  # pixels, what is taken off the object's mask, where edges are the outline's


def collage(scene: Tensor, reference: Tensor, mask: Tensor, boxes: list[Box]) -> Tensor:
    """(B, 4, H, W): the scene with the object's fine details in its box, and where the box is.

    Args:
        scene: (B, 3, H, W) in [-1, 1].
        reference: (B, 3, H', W') in [-1, 1]. mask: (B, 1, H', W'), 1 on the object.

    Raises:
        UserError: an empty mask.
    """
    shown, (height, width) = [], scene.shape[-2:]
    for picture, details, own, box in zip(scene, high_frequency(reference, mask), mask, boxes, strict=True):
        place = draw(box, height, width).to(scene)[None]
        (top, left), (bottom, right) = corners(place[0])
        piece = _framed(details, own, bottom - top, right - left)
        picture = torch.lerp(picture, torch.full_like(picture, -1.0), place)
        picture[:, top:bottom, left:right] += 2 * piece
        shown.append(torch.cat([picture, place]))
    return torch.stack(shown)


def high_frequency(pictures: Tensor, mask: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1]: the pictures where they have edges, faint ones and the object's outline left out.

    Edges are the mean of |Sobel x| and |Sobel y|, of the channel where it is largest.
    """
    levels = pictures / 2 + 0.5
    kernel = levels.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]])
    kernels = torch.stack([kernel, kernel.T])[:, None]
    sides = F.conv2d(F.pad(levels.flatten(0, 1)[:, None], (1, 1, 1, 1), mode="replicate"), kernels).abs().clamp(max=1)
    edges = sides.mean(1).unflatten(0, levels.shape[:2]).amax(1, keepdim=True)
    inner = 1 - F.max_pool2d(1 - mask, 2 * RIM + 1, stride=1, padding=RIM)
    return edges.where(edges >= FAINT, torch.zeros_like(edges)) * inner * levels


def corners(mask: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
    """(top, left), (bottom, right) of a mask (H, W), the latter two behind its last pixels.

    Raises:
        UserError: nothing in it.
    """
    places = mask.nonzero()
    if not len(places):
        raise UserError("an empty mask was given; expected 1 on the object")
    low, high = places.amin(0).tolist(), (places.amax(0) + 1).tolist()
    return tuple(low), tuple(high)


def _framed(details: Tensor, mask: Tensor, height: int, width: int) -> Tensor:
    """(3, height, width): the object's part of the details (3, H, W), as large as fits, in the middle."""
    (top, left), (bottom, right) = corners(mask[0])
    piece = details[:, top:bottom, left:right]
    scale = min(height / piece.shape[1], width / piece.shape[2])
    tall, wide = (max(1, round(side * scale)) for side in piece.shape[1:])
    piece = F.interpolate(piece[None], (tall, wide), mode="bilinear", align_corners=False, antialias=True)[0]
    up, across = (height - tall) // 2, (width - wide) // 2
    return F.pad(piece, (across, width - wide - across, up, height - tall - up))
