"""Folder of the presets, and their names."""

from pathlib import Path
from typing import Any

import yaml

from escdiff.support import extensions
from escdiff.support.errors import UserError, reason_of


def configs_folder() -> Path:
    """`configs/`: inside an installed wheel, beside the package in a checkout."""
    package = Path(__file__).parents[2]
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def groups_of(name: str) -> dict[str, str | None]:
    """Group -> its default, of those that `configs/{name}.yaml` lets one choose from."""
    defaults = yaml.safe_load((configs_folder() / f"{name}.yaml").read_text(encoding="utf-8"))["defaults"]
    return {group: option for entry in defaults if isinstance(entry, dict) for group, option in entry.items()}


def options(group: str) -> str:
    """The choices of a config group, methods of installed packages too."""
    folder = configs_folder() / group
    names = [str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml")]
    return ", ".join(sorted([*names, *(extensions.names(extensions.METHODS) if group == "method" else ())]))


def read_yaml(option: str, name: str, group: str, example: str) -> tuple[Path, Any]:
    """The path and contents of `configs/{group}/{name}.yaml`, or of a YAML file of one's own.

    Args:
        option: of the command line, which gave the name.
        example: where to see how such a file is written.

    Raises:
        UserError: no such file, or it is no YAML.
    """
    folder = configs_folder() / group
    path = folder / f"{name}.yaml" if not name.endswith((".yaml", ".yml")) else Path(name).expanduser()
    if not path.is_file():
        choices = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise UserError(f"{option} is {name!r}; give one of {choices}, or a YAML file")
    try:
        return path, yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is no YAML ({reason_of(error)}); see {example}") from None
