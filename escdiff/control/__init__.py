"""Controls steer the sampling of a picture: of any stock pipeline, by forward hooks and its scheduler."""

from escdiff.control.base import Control, Controlled, Run, Step, controlled

__all__ = ["Control", "Controlled", "Run", "Step", "controlled"]
