"""Customization methods: each is a way to fill a conditioning space from references, one file per method."""

from escdiff.methods.base import Method
from escdiff.methods.make import make_method

__all__ = ["Method", "make_method"]
