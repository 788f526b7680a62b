"""Who starts a run's processes."""

import os

from lightning.fabric.plugins import ClusterEnvironment
from lightning.pytorch.plugins.environments import LightningEnvironment


def launcher(devices: object, num_nodes: int) -> list[ClusterEnvironment]:
    """Lightning's plugins for a run of one process that SLURM's variables speak of as several.

    So it is for a notebook or a shell inside an allocation of several tasks; Lightning would take the variables' word.
    """
    alone = devices in (1, "1") and num_nodes == 1
    return [LightningEnvironment()] if alone and os.environ.get("SLURM_NTASKS", "1") != "1" else []
