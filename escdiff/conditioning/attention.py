"""Reading the cross-attention of a stock U-Net: hooks on `to_q` and `to_k`, so no attention processor is replaced.

The U-Net runs on as it is, so its output stays equal bit for bit, whatever processor it has; a packed conditioning is
seen as each bound layer narrows it. Legend: B batch, H heads, P pixels of a map, T token position, E H x head width.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from escdiff.conditioning.space import cross_attention_layers
from escdiff.support.errors import UserError

MAP_SIDE = 16  # pixels: published controls read maps of 16 x 16 on Stable Diffusion at 512 pixels


def factors(unet: nn.Module) -> dict[str, int]:
    """Cross-attention layer -> how many times smaller than the latents its maps are, in execution order."""
    depth = len(unet.down_blocks)
    found = {}
    for name in cross_attention_layers(unet):
        part, number = name.split(".")[:2]
        level = {"down_blocks": int, "mid_block": lambda _: depth - 1, "up_blocks": lambda n: depth - 1 - int(n)}[part]
        found[name] = 2 ** level(number)
    return found


def default_factor(unet: nn.Module) -> int:
    """The coarsest factor whose maps are at least 16 pixels wide: 4 for Stable Diffusion, 1 for the bundled model."""
    known = sorted(set(factors(unet).values()))
    return max([factor for factor in known if unet.config.sample_size // factor >= MAP_SIDE], default=known[0])


def layers_at(unet: nn.Module, factor: int | None = None) -> tuple[str, ...]:
    """Names of the cross-attention layers whose maps are `factor` times smaller than the latents.

    Args:
        factor: None for `default_factor`.

    Raises:
        UserError: this U-Net has no such layer.
    """
    known = factors(unet)
    factor = default_factor(unet) if factor is None else factor
    names = tuple(name for name, value in known.items() if value == factor)
    if not names:
        there = ", ".join(str(value) for value in sorted(set(known.values())))
        raise UserError(
            f"factor={factor} was given; this U-Net has cross-attention at factors {there}: choose of these"
        )
    return names


def probabilities(layer: Attention, query_BPE: Tensor, key_BTE: Tensor) -> Tensor:
    """(B, H, P, T) softmax(q k / sqrt(d)) of one layer, which sums to one over the token positions."""
    scores = layer.get_attention_scores(layer.head_to_batch_dim(query_BPE), layer.head_to_batch_dim(key_BTE))
    return scores.unflatten(0, (len(query_BPE), -1))


@contextmanager
def read_attention(
    unet: nn.Module, layers: Sequence[str], read: Callable[[str, Tensor, Tensor], None]
) -> Iterator[None]:
    """As long as this stands, call `read(layer, query (B, P, E), key (B, T, E))` in every forward pass.

    Only inside of the U-Net's own forward: what gradient checkpointing computes again during a backward pass is not
    read a second time. Enter it after LoRAs are loaded, which replace `to_q`.
    """
    queries: dict[str, Tensor] = {}
    running = []

    def keep(name: str, module: nn.Module, args: tuple, query: Tensor) -> None:
        queries[name] = query

    def see(name: str, module: nn.Module, args: tuple, key: Tensor) -> None:
        query = queries.pop(name)
        if running:
            read(name, query, key)

    handles = [
        unet.register_forward_pre_hook(lambda module, args: running.append(True)),
        unet.register_forward_hook(lambda module, args, output: running.clear(), always_call=True),
    ]
    for name in layers:
        layer = unet.get_submodule(name)
        handles.append(layer.to_q.register_forward_hook(partial(keep, name)))
        handles.append(layer.to_k.register_forward_hook(partial(see, name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def frozen(*models: nn.Module) -> Iterator[None]:
    """Parameters take no gradients as long as this stands; afterwards those do that did."""
    trained = [parameter for model in models for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def uncompiled() -> Iterator[None]:
    """What `torch.compile` compiled runs as it was written, so that hooks are seen."""
    with torch.compiler.set_stance("force_eager"):
        yield
