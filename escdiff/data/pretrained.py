"""Models of transformers by name: a folder, a hub id or the bundled CLIP. Safetensors only, no foreign code."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from escdiff.backbone import mini_folder
from escdiff.support.errors import UserError, reason_of
from escdiff.support.logging import quiet_libraries

BUNDLED = "mini"
Part = TypeVar("Part")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Pretrained(Protocol[Part]):
    """A class of transformers, or one of its Auto classes."""

    def from_pretrained(self, source: str, **options: Any) -> Part:
        """An object of what stands under a name."""


def read(kind: Pretrained[Part], name: str | Path, **options: Any) -> Part:
    """A model, tokenizer, preprocessor or configuration of transformers.

    Args:
        name: a folder, a hub id, or "mini": the bundled CLIP.
        options: of `from_pretrained`.

    Raises:
        UserError: it cannot be loaded.
    """
    folder = mini_folder() / "clip" if name == BUNDLED else Path(name).expanduser()
    try:
        return kind.from_pretrained(str(folder) if folder.is_dir() else str(name), **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise cannot_load(name, error) from error


def read_model(kind: Pretrained[Part], name: str | Path, dtype: torch.dtype = torch.float32) -> Part:
    """A model as `read` gives it, frozen and in evaluation mode, its weights from safetensors."""
    return read(kind, name, dtype=dtype, use_safetensors=True).requires_grad_(False).eval()


@functools.lru_cache(2)
def load_model(
    kind: str, name: str, processor: str = "AutoProcessor", device: str = "cpu", dtype: str = "float32"
) -> tuple[Any, Any]:
    """(model, processor) of a folder or hub id, frozen.

    Args:
        kind, processor: names of transformers' Auto classes, e.g. "AutoModel".

    Raises:
        UserError: they cannot be loaded.
    """
    import transformers

    quiet_libraries()
    model = read_model(getattr(transformers, kind), name, DTYPES[dtype])
    return model.to(device), read(getattr(transformers, processor), name)


def cannot_load(name: str | Path, error: Exception) -> UserError:
    """One sentence for what transformers raised."""
    return UserError(f"the model {name} cannot be loaded ({reason_of(error)}); give a folder or hub id of its kind")


def check_dtype(dtype: str) -> None:
    """
    Raises:
        UserError: `dtype` is none of `DTYPES`.
    """
    if dtype not in DTYPES:
        raise UserError(f"--dtype is {dtype!r}; give one of {', '.join(DTYPES)}")


@contextmanager
def one_thread() -> Iterator[None]:
    """In this block torch computes on one thread: more may sum in another order, and processes fill the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
