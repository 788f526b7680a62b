"""Exact edits: the picture that should come out is known, so pixels can judge without an oracle."""

import torch
from torch import Tensor

CHANGED = 0.05  # difference of a pixel, colours in 0..1, from which an edit has changed it
DONE = 0.25  # share of the edit's mean squared change that may be left
EXACT = 1e-10  # least mean squared error: 100 dB


def score_edits(results: Tensor, before: Tensor, after: Tensor) -> list[dict[str, float]]:
    """Scores of pictures (B, 3, H, W) in [-1, 1] against the exact pair.

    Returns:
        "done": within what the edit changes, the mean squared error to the picture after is at most `DONE` of that
        between before and after; "chance_done": the same of the next result of the batch; "kept": PSNR in dB to the
        picture after elsewhere, where it is as before but for a shadow.
    """
    results, before, after = ((pixels + 1) / 2 for pixels in (results, before, after))
    changed = ((after - before).abs().amax(1, keepdim=True) > CHANGED).expand_as(after)

    def mean(values: Tensor, mask: Tensor) -> Tensor:
        return (values.square() * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp_min(1)

    whole = mean(after - before, changed)
    distance, by_chance = (mean(x - after, changed) for x in (results, results.roll(-1, 0)))
    psnr = -10 * torch.log10(mean(results - after, ~changed).clamp_min(EXACT))
    columns = {
        "done": (distance <= DONE * whole).float(),
        "chance_done": (by_chance <= DONE * whole).float(),
        "kept": psnr,
    }
    return [{name: column[i].item() for name, column in columns.items()} for i in range(len(results))]
