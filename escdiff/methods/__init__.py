"""Customization methods: each is a way to fill a conditioning space from references, one file per method."""

from escdiff.methods.base import Method, Phase
from escdiff.methods.build import make_method

__all__ = ["Method", "Phase", "make_method"]
