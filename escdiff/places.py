"""Where the configurations lie."""

from pathlib import Path


def configs_folder() -> Path:
    """`configs/`: inside an installed wheel, beside the package in a checkout."""
    package = Path(__file__).parent
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"
