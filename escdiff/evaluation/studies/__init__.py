"""Studies of a trained encoder: ablations, curves, layers."""
