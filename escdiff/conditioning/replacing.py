"""Other functions in place of torch's own, for the calls of one thread only.

CLIP's text encoder takes neither word embeddings nor further keys and values. A hook or a setting would change the
encoder for every thread that shares it; a mode of torch changes the calls inside it, and nothing remains.
"""

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class Replacing(TorchFunctionMode):
    """A context in which this thread's calls of some torch functions go to others, such as `{F.embedding: mine}`."""

    def __init__(self, functions: Mapping[Callable, Callable]) -> None:
        super().__init__()
        self.functions = functions

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return self.functions.get(function, function)(*args, **(kwargs or {}))


class ChangedEmbedding:
    """A stand-in for `F.embedding` that changes what one table gives and leaves the other tables alone.

    Args:
        change: (ids, embedded (R, T, D)) -> embedded.

    Attributes:
        used: whether the table was asked.
    """

    def __init__(self, table: nn.Embedding, change: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.table, self.change, self.used = table, change, False

    def __call__(self, ids: Tensor, weight: Tensor, *args, **kwargs) -> Tensor:
        embedded = F.embedding(ids, weight, *args, **kwargs)
        if weight is not self.table.weight:
            return embedded
        self.used = True
        return self.change(ids, embedded)
