"""Where low-rank adapters act while a cross-attention layer runs: a variable of each thread, not of the U-Net."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from torch import Tensor

_masks: ContextVar[Tensor | None] = ContextVar("escdiff_token_masks", default=None)


def set_masks(masks: Tensor | None) -> None:
    """(B, A, T), 1 at the tokens of each attribute, for the layer that this thread runs next; None: nowhere."""
    _masks.set(masks)


def current_masks() -> Tensor | None:
    """What `set_masks` said in this thread."""
    return _masks.get()


@contextmanager
def acting(masks: Tensor | None) -> Iterator[None]:
    """`set_masks` as long as this stands."""
    token = _masks.set(masks)
    try:
        yield
    finally:
        _masks.reset(token)
