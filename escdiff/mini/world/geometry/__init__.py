"""Signed distances of everything that stands in the world."""
