"""The phases of a customization: which parameters are trained when, and how fast."""

from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from itertools import accumulate

from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from escdiff.methods import Phase
from escdiff.support.errors import UserError


class Phases:
    """The phases of a run of `max_steps` steps.

    Raises:
        UserError: shares that are no parts of a whole.
    """

    def __init__(self, phases: Sequence[Phase], max_steps: int) -> None:
        shares = [phase.share for phase in phases]
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise UserError(f"the phases of a training have shares {shares}; expected parts that add up to 1")
        self.phases = list(phases)
        self.ends = [round(end * max_steps) for end in accumulate(shares)]

    def at(self, step: int) -> int:
        """Number of the phase that a step is in."""
        return min(bisect_right(self.ends, step), len(self.phases) - 1)

    def groups(self) -> list[dict]:
        """An optimizer's parameter groups: those that are trained alike in all phases, at the first of their rates."""
        found: dict[tuple, list[nn.Parameter]] = {}
        for parameter, rates in self._rates().items():
            found.setdefault(rates, []).append(parameter)
        return [{"params": own, "lr": _first(rates)} for rates, own in found.items()]

    def steer(self, schedule: LambdaLR) -> None:
        """Let a schedule over `groups` also follow the phases' rates."""
        every = dict.fromkeys(self._rates().values())
        schedule.lr_lambdas = [
            partial(self._factor, rates, own) for rates, own in zip(every, schedule.lr_lambdas, strict=True)
        ]
        for group, lr, law in zip(schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
            group["lr"] = lr * law(0)  # the first phase may be empty

    def rest(self, step: int) -> None:
        """Drop the gradients of what is not trained at a step, so that the optimizer passes it over."""
        now = self.at(step)
        for parameter, rates in self._rates().items():
            if rates[now] is None:
                parameter.grad = None

    def _rates(self) -> dict[nn.Parameter, tuple[float | None, ...]]:
        """Parameter -> its rate in each phase, None where it rests."""
        each = [dict.fromkeys(phase.parameters, phase.lr) for phase in self.phases]
        return {p: tuple(own.get(p) for own in each) for p in dict.fromkeys(p for own in each for p in own)}

    def _factor(self, rates: tuple[float | None, ...], own, step: int) -> float:
        return own(step) * ((rates[self.at(step)] or 0.0) / (_first(rates) or 1.0))


def _first(rates: tuple[float | None, ...]) -> float:
    return next(rate for rate in rates if rate is not None)
