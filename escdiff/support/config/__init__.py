"""The configuration: every key with its type, default, bounds and one line of help, as dataclasses.

One file per block; `compose` turns a command line and the presets of `configs/` into them. Nothing here imports torch.
"""
