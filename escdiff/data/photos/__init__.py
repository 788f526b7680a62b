"""Photographs of your own: read as a stream, with references drawn live."""

from escdiff.data.photos.module import PhotoDataModule

__all__ = ["PhotoDataModule"]
