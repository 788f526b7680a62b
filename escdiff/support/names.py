"""Names of models that hold on any machine."""

import re
from pathlib import Path


def portable(name: str) -> str:
    """The last part of a path; any other name, such as a hub id, as it is."""
    path = Path(name).expanduser()
    if not name or not (name.startswith((".", "~")) or path.is_absolute() or path.exists()):
        return name
    return path.stem if path.suffix == ".safetensors" else path.name or path.resolve().name


def hub_id(name: str) -> str | None:
    """The name if it can be a repository of the Hugging Face hub (USER/NAME) and is no path here, else None."""
    looks = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", str(name))
    return str(name) if looks and not Path(name).exists() else None
