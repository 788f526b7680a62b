"""One step of the methods' loop, by hand."""

import torch

from escdiff.training.method.module import MethodModule
from escdiff.training.method.references import ReferenceData, References


def step_of(method, references, batch_size=2, seed=0, bias=0.0):
    """One training step's terms, backward done; deterministic."""
    data = ReferenceData(method, References.read(references, 128), batch_size, seed)
    module = MethodModule(method, 1e-3, 10, high_noise_bias=bias)
    module.on_fit_start()
    torch.manual_seed(seed)
    out = module.training_step(data.batch(0), 0)
    out["loss"].backward()
    module.on_fit_end()
    return out
