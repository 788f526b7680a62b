"""Edits of pictures judged by the renderer: whether the change is there and everything else as before."""
