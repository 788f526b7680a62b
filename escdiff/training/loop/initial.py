"""`init=DIR`: trainings that start from the export of an earlier one."""

from pathlib import Path

from safetensors import SafetensorError
from torch import nn

from escdiff.support.errors import UserError, reason_of


def start_from(module: nn.Module, init: str, part: str) -> None:
    """Give a module the weights of a part that an earlier training exported to `init`.

    Raises:
        UserError: there is no such part, it cannot be read, or it has other sizes.
    """
    folder = Path(init).expanduser() / part
    if not (folder / "config.json").is_file():
        raise UserError(f"init={init} given, with no {part} in it; give the export of a training of this recipe")
    try:
        stored = type(module).from_pretrained(folder)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"init={init} given, whose {part} cannot be read ({reason_of(error)}); copy it again") from None
    take(module, stored, init)


def take(module: nn.Module, stored: nn.Module, init: str) -> None:
    """Give a module the weights of another of its kind, which was read from `init`.

    Raises:
        UserError: it has other sizes.
    """
    try:
        module.load_state_dict(stored.state_dict())
    except RuntimeError as error:  # a line for every tensor
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        what = f"init={init} given, whose {type(module).__name__} is not this recipe's ({first[:200].rstrip('.')})"
        raise UserError(f"{what}; give the export of a training of the same recipe and sizes") from None
