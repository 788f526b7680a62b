"""Rays, light and colour: from a description to pixels."""
