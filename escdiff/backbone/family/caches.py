"""diffusers' block caches: they reuse what a block said some steps ago, so they keep a former stage's words."""

from collections.abc import Iterator

from diffusers.hooks import HookRegistry
from torch import nn

from escdiff.support.errors import UserError

PLAIN = ("layerwise_casting", "group_offloading", "layer_skip", "context_parallel", "tensor_parallel")


def refuse_caches(model: nn.Module) -> None:
    """Refuse a model that reuses blocks' outputs over the steps.

    Raises:
        UserError: naming the cache and the reason.
    """
    for kind in _caches(model):
        raise UserError(
            f"{kind} is enabled and the concept has several stages: it would reuse what a block computed from an "
            "earlier stage's words; disable it (`disable_cache()`), or use a concept of one stage"
        )


def _caches(model: nn.Module) -> Iterator[str]:
    for module in model.modules():
        if "forward" not in vars(module):  # nothing rewrote it
            continue
        for hook in HookRegistry.check_if_exists_or_initialize(module).hooks.values():
            source = type(hook).__module__.rpartition(".")[2]
            if type(hook).__module__.startswith("diffusers.hooks.") and source not in PLAIN:
                yield "".join(word.capitalize() for word in source.split("_"))
