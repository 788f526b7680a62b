"""The blocks `trainer`, `optim` and `logger`: the loop, whatever it trains."""

from dataclasses import dataclass
from typing import Any

from escdiff.support.config.keys import key


@dataclass
class TrainerConfig:
    """Hardware, length, logs and checkpoints of a run."""

    accelerator: str = key("auto", "auto, cpu, gpu, or another of Lightning's; auto: a GPU if one is there")
    devices: Any = key("auto", "how many, or which as [0,2]; auto: all GPUs for a data set, one for a concept's "
                       "references")  # fmt: skip
    num_nodes: int = key(1, "machines", low=1)
    strategy: str = key("auto", "how several processes work together: auto, ddp, or another of Lightning's")
    precision: str = key("auto", "32-true, bf16-mixed, or another of Lightning's; auto: bf16-mixed on GPUs that have "
                         "it")  # fmt: skip
    deterministic: bool = key(False, "on GPUs: kernels that give the same bits each time, which cost some speed")
    max_steps: int = key(3000, "optimizer steps of the run", low=0)
    accumulate: int = key(1, "batches per optimizer step", low=1)
    threads: int | None = key(None, "of torch; null leaves its own choice", low=1)
    log_steps: int = key(20, "steps between lines of metrics.jsonl", low=1)
    save_minutes: float = key(5.0, "minutes between checkpoints", low=0)
    save_steps: int | None = key(None, "steps between checkpoints, too", low=1)
    keep: int = key(2, "newest checkpoints that are kept", low=1)
    val_steps: int = key(200, "steps between losses on held-out samples; the last step has one, too; 0 for none", low=0)
    val_batches: int = key(5, "held-out batches, per process", low=1)
    sample_steps: int = key(500, "steps between sample grids; 0 for none", low=0)
    max_minutes: float | None = key(None, "stop cleanly after so long, to go on later", low=0)
    max_skips: int = key(10, "steps in a row without a finite loss or gradient, after which the run ends", low=0)
    stall_seconds: float = key(60.0, "with several processes: end all within so long when one died or stalls", low=0)
    price_per_hour: float | None = key(None, "of the machine, in any currency: the estimate after 20 steps then says "
                                       "what the run costs", low=0)  # fmt: skip


@dataclass
class OptimConfig:
    """The optimizer."""

    name: str = key("muon", "muon; adamw; or adamw8bit, which needs a GPU and bitsandbytes. Of the encoder alone; "
                    "others have their own", choices=("muon", "adamw", "adamw8bit"))  # fmt: skip
    lr: float = key(1e-3, "learning rate", low=0)
    warmup: int = key(100, "steps of linear warm-up", low=0)
    weight_decay: float = key(0.01, "of the trained weights", low=0)
    ema: float = key(0.999, "decay of the average of the trained weights; 0 switches it off", low=0, high=1)
    clip: float = key(1.0, "largest norm of the gradient", low=0)


@dataclass
class LoggerConfig:
    """A mirror of metrics.jsonl, which is always written; a lost connection never stops or slows a run."""

    name: str = key("none", "of the mirror", choices=("none", "jsonl", "tensorboard", "wandb"))
    project: str = key("escdiff", "of wandb")
    mode: str = key("online", "of wandb", choices=("online", "offline", "disabled"))


@dataclass
class ScoresConfig:
    """Scores of pictures painted while training, at validations, in at most 3 % of the time (encoder)."""

    clip: str | None = key(None, "folder of a CLIP of transformers, or mini for the bundled one", verbatim=True)
    dino: str | None = key(None, "folder of a DINO or DINOv2 of transformers", verbatim=True)
