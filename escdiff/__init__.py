"""ESCDiff: one reference image in, shape and appearance out, in one forward pass."""

__version__ = "0.1.0"
