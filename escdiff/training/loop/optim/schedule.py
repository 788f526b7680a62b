"""The learning rate over a run."""

import torch


def with_schedule(optimizer: torch.optim.Optimizer, warmup: int, max_steps: int, decay: float = 0.2) -> dict:
    """Linear warm-up, a constant rate, and a decay to zero over the last `decay` of the run, in Lightning's form.

    Why not a cosine: a checkpoint of the constant phase goes on under any larger `max_steps`.
    """
    from transformers import get_wsd_schedule

    schedule = get_wsd_schedule(
        optimizer, num_warmup_steps=warmup, num_decay_steps=int(decay * max_steps), num_training_steps=max_steps
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
