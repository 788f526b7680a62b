"""Muon (Jordan et al. 2024): momentum whose every matrix is orthogonalised before it is applied.

torch's own `Muon` takes no convolutions and iterates in bfloat16, which most CPUs emulate twenty times slower.
"""

import torch
from torch import Tensor

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # the quintic of Jordan's post, steepest at zero


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """U Vᵀ of a matrix (m, n) = U S Vᵀ, roughly: its larger singular values come out between 0.7 and 1.2.

    The iteration runs on the small Gram matrix and meets the matrix itself only twice.
    """
    a, b, c = NEWTON_SCHULZ
    wide = matrix.T if matrix.size(0) > matrix.size(1) else matrix
    wide = wide / wide.norm().clamp(min=1e-7)
    gram, product = wide @ wide.T, None
    for step in range(steps):
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal().add_(a)
        product = polynomial if product is None else polynomial @ product
        if step + 1 < steps:
            gram = polynomial @ (polynomial @ gram)
    wide = product @ wide
    return wide.T if matrix.size(0) > matrix.size(1) else wide


class Muon(torch.optim.Optimizer):
    """Muon for matrices and convolutions (flattened to (out, in·k·k)), AdamW for vectors.

    A matrix's step is scaled to the root mean square of AdamW's (Liu et al. 2025, arXiv 2502.16982), so `lr` and
    `weight_decay` mean what they mean there. A parameter group with `orthogonal=False` (embeddings, whose rows are
    words and not directions) gets AdamW throughout.
    """

    def __init__(self, parameters, lr: float, weight_decay: float = 0.01, momentum: float = 0.95) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "orthogonal": True}
        super().__init__(list(parameters), defaults)

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    update = self._matrix if parameter.ndim > 1 and group["orthogonal"] else self._vector
                    update(parameter, self.state[parameter], group)
        return loss

    def _matrix(self, parameter: Tensor, state: dict, group: dict) -> None:
        momentum = state.setdefault("momentum", torch.zeros_like(parameter))
        momentum.lerp_(parameter.grad, 1 - group["momentum"])
        nesterov = parameter.grad.lerp(momentum, group["momentum"]).flatten(1)
        scale = 0.2 * max(nesterov.shape) ** 0.5
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(orthogonalise(nesterov).view_as(parameter), alpha=group["lr"] * scale)

    def _vector(self, parameter: Tensor, state: dict, group: dict) -> None:
        mean = state.setdefault("mean", torch.zeros_like(parameter))
        square = state.setdefault("square", torch.zeros_like(parameter))
        state["step"] = step = state.get("step", torch.tensor(0.0)) + 1
        mean.lerp_(parameter.grad, 0.1)
        square.lerp_(parameter.grad.square(), 0.01)
        deviation = (square / (1 - 0.99 ** step.item())).sqrt_().add_(1e-8)
        parameter.addcdiv_(mean, deviation, value=-group["lr"] / (1 - 0.9 ** step.item()))
