"""Reading other people's files: safetensors without a question, a pickle only for who trusts its author."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from escdiff.support.config.keys import leaves
from escdiff.support.errors import UserError

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


def read_shapes(path: Path, trust_pickle: bool = False) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Name -> shape of all tensors, and the metadata; of safetensors only the header is read.

    Raises:
        UserError: see `read_tensors`.
    """
    if _is_pickle(path, trust_pickle):
        tensors, metadata = _unpickle(path)
        return {name: tuple(value.shape) for name, value in tensors.items()}, metadata
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            return {name: tuple(file.get_slice(name).get_shape()) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def read_tensors(path: Path, trust_pickle: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Name -> tensor, and the metadata. What lies in a dictionary of its own in a pickle is called "OUTER.INNER".

    Args:
        trust_pickle: read a pickle, with PyTorch's `weights_only` reader.

    Raises:
        UserError: no such file, a pickle without `trust_pickle`, or a damaged file.
    """
    if _is_pickle(path, trust_pickle):
        return _unpickle(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in list(file.keys())}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def _is_pickle(path: Path, trust_pickle: bool) -> bool:
    if not path.is_file():
        raise UserError(f"there is no file at '{path}': check the path")
    if path.suffix in PICKLES and not trust_pickle:
        raise UserError(
            f"'{path}' is a pickle, which can run code when it is read; expected .safetensors: "
            "set trust_pickle if you trust its author"
        )
    return path.suffix in PICKLES


def _unpickle(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        values = leaves(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # unpickling raises what it likes
        raise _unreadable(path, error) from error
    tensors = {name: value.detach() for name, value in values.items() if isinstance(value, Tensor)}
    return tensors, {name: value for name, value in values.items() if isinstance(value, str)}


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"'{path}' cannot be read ({type(error).__name__}): it is damaged or of another kind")
