"""Print constraints for pip: the oldest versions that pyproject.toml allows, its extra `test` included."""

import re
import sys
import tomllib
from pathlib import Path

# Hundreds of megabytes each, with CUDA's libraries for every version: they stay as they are installed.
LARGE = ("torch", "torchvision")

project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
for line in [*project["dependencies"], *project["optional-dependencies"]["test"]]:
    name, bound = re.match(r"([\w-]+)(?:\[.*\])?>=([\d.]+)", line).groups()
    if name not in LARGE:
        sys.stdout.write(f"{name}=={bound}\n")
